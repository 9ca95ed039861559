"""A finished run, for the tests of tracking."""

import shutil

import pytest
from report import fake_results

from moesaic.flow import store


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run with its report, and an empty MLflow database, made once; tests work on copies."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("finished")
        patch.chdir(folder)
        config = fake_results.load_config(["construct", "pretrain"], ["activation", "random"])
        fake_results.build(config)
        fake_results.report(config)
        store.open_experiment(config.track.uri, config.track.experiment)
        return folder, config


@pytest.fixture
def config(finished, tmp_path, monkeypatch):
    folder, config = finished
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return config
