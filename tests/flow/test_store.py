"""MLflow's database as a user may have it, and what settings and names become in it."""

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_runs import RESULTS, counts

from moesaic import config as configuration
from moesaic.errors import InputError
from moesaic.flow import store, track


def test_long_settings_are_cut_and_odd_names_cleaned():
    assert store.clean("valid/loss/été, 100 %") == "valid/loss/_t__ 100 _"
    flat = configuration.flatten({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None}, ".")
    assert flat == {"a.b": [1, {"c": 2}], "a.d": {}, "e": None}


def test_broken_database_is_a_users_error(config):
    Path("mlflow.db").write_text("this is not a database, but it is long enough to be looked at by sqlite")
    with pytest.raises(InputError, match=r"track\.uri: sqlite:///mlflow\.db cannot be opened"):
        track.start(config, RESULTS)


@pytest.mark.slow
def test_old_database_is_migrated_and_kept(config):
    track.replay(config, RESULTS)
    before = counts()
    code = (
        "import sqlalchemy; from alembic import command; from mlflow.store.db.utils import _get_alembic_config as c;"
        "command.downgrade(c('sqlite:///mlflow.db'), '-1')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:  # not every migration of MLflow has a way back: make the version only look old
        with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
            pytest.skip(
                f"this MLflow's last migration cannot be undone: {database.execute('SELECT * FROM alembic_version').fetchall()}"
            )
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        old = database.execute("SELECT version_num FROM alembic_version").fetchall()
    again = "from moesaic.flow import store; store.open_experiment('sqlite:///mlflow.db', 'moesaic')"
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect("mlflow.db.before-migration")) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == old
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() != old
    assert counts() == before
