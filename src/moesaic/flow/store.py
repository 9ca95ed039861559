"""What we ask of MLflow: open the store, find or make runs by their tags, log what is not there yet.

MLflow is imported where it is used: its import takes seconds.
"""

import contextlib
import datetime
import getpass
import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moesaic import config as configuration
from moesaic.errors import InputError
from moesaic.flow import describe
from moesaic.settings import compared

log = logging.getLogger("moesaic.track")
METRICS_PER_BATCH, PARAMS_PER_BATCH, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 6000, 5000
ARTIFACTS = "mlartifacts"
"""Folder of artifacts, beside the SQLite database."""
TAGS = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": describe.EXPERIMENT}
"""Without the kind MLflow 3 shows the experiment as one of prompts and traces."""


def identity(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Digest of what a step's result follows from: its settings, as far as they are compared, and the SHA-256 of each input manifest."""
    return configuration.digest({"settings": compared(settings), "inputs": dict(inputs)})


def is_http(uri: str) -> bool:
    """True when a server is between us and the database, so that any process may write."""
    return uri.startswith(("http://", "https://"))


def client(uri: str) -> Any:
    """A client of a tracking URI, without MLflow's telemetry and chatter."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    if is_http(uri):  # the defaults (7 retries of 120 s) would hold up a workflow for a quarter of an hour
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    database = _database(uri)
    # MLflow keeps one store per URI in the process: a relative path would stay tied to the first working directory.
    return MlflowClient(tracking_uri=f"sqlite:///{database}" if database else uri)


def open_experiment(uri: str, name: str) -> tuple[Any, str]:
    """Client and experiment id. A SQLite database is created, or migrated after a backup; a moved one finds its artifacts.

    Raises:
        InputError: the database cannot be opened.
    """
    if is_http(uri):
        made = client(uri)
        found = made.get_experiment_by_name(name)
        return made, found.experiment_id if found else made.create_experiment(name, tags=TAGS)
    database = _database(uri)
    if database is not None and _is_outdated(database):
        _migrate(uri, database)
    try:
        made = client(uri)
        found = made.get_experiment_by_name(name)
    except Exception as error:
        raise InputError(
            f"track.uri: {uri} cannot be opened as an MLflow database: {one_line(error)}"
        ) from error
    if database is None:
        return made, found.experiment_id if found else made.create_experiment(name, tags=TAGS)
    artifacts = str(database.parent / ARTIFACTS)
    if found is None:
        return made, made.create_experiment(name, artifact_location=artifacts, tags=TAGS)
    if found.artifact_location != artifacts and found.artifact_location.endswith(f"/{ARTIFACTS}"):
        _rehome(database, found.experiment_id, found.artifact_location, artifacts)
    return made, found.experiment_id


def _database(uri: str) -> Path | None:
    """File of a SQLite URI; None for other databases."""
    scheme, _, path = uri.partition(":///")
    return Path(path).absolute() if scheme == "sqlite" else None


def _is_outdated(database: Path) -> bool:
    """True when an MLflow of another version made the database."""
    if not database.is_file():
        return False
    import mlflow
    from alembic.script import ScriptDirectory

    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.DatabaseError:  # empty, or not MLflow's: opening it says what is wrong
        return False
    head = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()
    return versions != [(head,)]


def _migrate(uri: str, database: Path) -> None:
    backup = database.with_name(f"{database.name}.before-migration")
    shutil.copy2(database, backup)
    log.info("%s is of another MLflow version; migrating it, a copy stays in %s", database.name, backup.name)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"track.uri: {uri} cannot be migrated: {one_line(done.stderr)[-300:]}")


def _rehome(database: Path, experiment: str, old: str, new: str) -> None:
    """MLflow stores absolute artifact paths; after the folder was moved or copied, make them ours again."""
    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment)
        )
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, experiment, len(old), old),
        )
    connection.close()
    log.info("%s was moved here: its artifacts are now looked for in %s", database.name, new)


# ---------------------------------------------------------------- runs


def search(client: Any, experiment: str, **tags: str) -> Iterator[Any]:
    """Runs with all these `moesaic.` tags, newest first."""
    condition = " and ".join(f"tags.`moesaic.{key}` = '{value}'" for key, value in tags.items())
    token = None
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def child(
    client: Any,
    experiment: str,
    parent: str,
    workspace: str,
    known: list[Any],
    key: str,
    digest: str,
    started: str,
) -> Any:
    """The run of a step: the one that has these settings, inputs and beginning, else a new one (added to `known`)."""
    run = find(known, key, digest, started)
    if run is not None:
        if run.data.tags.get("mlflow.parentRunId") != parent:
            client.set_tag(run.info.run_id, "mlflow.parentRunId", parent)
        return run
    tags = {"moesaic.workspace": workspace, "moesaic.kind": "step", "moesaic.superseded": "false"}
    tags |= _identified(key, digest, started) | {"mlflow.parentRunId": parent, "mlflow.user": user()}
    run = client.create_run(experiment, start_time=ms(started), tags=tags, run_name=describe.title(key))
    known.append(run)
    return run


def find(known: list[Any], key: str, digest: str, started: str) -> Any | None:
    """The run of a step that has these settings, inputs and beginning."""
    wanted = _identified(key, digest, started).items()
    return next((run for run in known if wanted <= run.data.tags.items()), None)


def _identified(key: str, digest: str, started: str) -> dict[str, str]:
    return {"moesaic.step_key": key, "moesaic.settings_digest": digest, "moesaic.started": started}


def supersede(client: Any, known: list[Any], key: str, current: str) -> None:
    """Mark all runs of a step but the current one. The current one says `false`: MLflow's search finds no missing tags."""
    for run in known:
        if run.data.tags["moesaic.step_key"] != key:
            continue
        old = run.info.run_id != current
        if run.data.tags.get("moesaic.superseded") != str(old).lower():
            client.set_tag(run.info.run_id, "moesaic.superseded", str(old).lower())
        if old and run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")


def log_metrics(client: Any, run: Any, found: Iterable[tuple[str, float, int, int]]) -> None:
    """Log (key, value, timestamp, step) that is not there yet.

    One value per key and step, whichever way it came: live or by replay, before or after a resume (which repeats the steps
    since the last checkpoint with new time stamps).
    """
    from mlflow.entities import Metric

    present: dict[str, set[int]] = {}
    batch = []
    for key, value, ts, step in found:
        name = clean(key)
        if name not in present:
            history = client.get_metric_history(run.info.run_id, name) if name in run.data.metrics else []
            present[name] = {item.step for item in history}
        if step not in present[name]:
            present[name].add(step)
            batch.append(Metric(name, value, ts, step))
    for i in range(0, len(batch), METRICS_PER_BATCH):
        client.log_batch(run.info.run_id, metrics=batch[i : i + METRICS_PER_BATCH])


def log_params(client: Any, run: Any, settings: Mapping[str, Any]) -> None:
    """Flattened settings. Params are immutable in MLflow, so those that are there are left alone."""
    from mlflow.entities import Param

    new = [Param(key, value) for key, value in params(settings).items() if key not in run.data.params]
    for i in range(0, len(new), PARAMS_PER_BATCH):
        client.log_batch(run.info.run_id, params=new[i : i + PARAMS_PER_BATCH])


def params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as MLflow keeps them: flat, as text, not too long; what is None is left out."""
    flat = {
        clean(key): value for key, value in configuration.flatten(settings, ".").items() if value is not None
    }
    return {
        key: (value if isinstance(value, str) else json.dumps(value))[:PARAM_LENGTH]
        for key, value in flat.items()
    }


def log_datasets(client: Any, run_id: str, found: Iterable[Mapping[str, str]]) -> None:
    """Datasets that a run read, as describe.datasets gives them. MLflow keeps equal ones once."""
    from mlflow.entities import Dataset, DatasetInput

    inputs = [DatasetInput(Dataset(**dict(item))) for item in found]
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def log_tags(client: Any, run_id: str, tags: Mapping[str, Any]) -> None:
    """Tags that have a value; longer ones are cut."""
    from mlflow.entities import RunTag

    new = [
        RunTag(clean(key), str(value)[:TAG_LENGTH]) for key, value in tags.items() if value not in (None, "")
    ]
    for i in range(0, len(new), PARAMS_PER_BATCH):
        client.log_batch(run_id, tags=new[i : i + PARAMS_PER_BATCH])


# ---------------------------------------------------------------- small things


def clean(key: str) -> str:
    """A key that MLflow takes: letters, digits, _ - . / and spaces, at most 250 long."""
    return re.sub(r"[^\w\-./ ]", "_", key, flags=re.ASCII)[:250]


def ms(time: str | None) -> int | None:
    """ISO time -> milliseconds since 1970."""
    return round(datetime.datetime.fromisoformat(time).timestamp() * 1000) if time else None


def user() -> str:
    """Who runs this; containers without a passwd entry have only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def one_line(error: object) -> str:
    """An error's text on one line, not too long."""
    return " ".join(str(error).split())[:300]


def git_commit() -> str:
    """Commit of the working directory, with -dirty for uncommitted changes; empty outside of a git repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
