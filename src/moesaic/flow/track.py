"""MLflow, made from files: `start` opens the workflow's run, `replay` writes every step into it.

The files are the truth, and replaying them any number of times gives the same rows. One parent run per configuration, one
child run per step. A child is the same run as long as the step's settings and inputs are the same and it was not begun
afresh; otherwise a new one is made and the old one tagged `moesaic.superseded`. A child belongs to the newest parent that
used it, as the results folder itself does; steps and a report that are not of the configuration stay with the parent that
they have (current.py). SQLite is written by the workflow's main process only.
"""

import datetime
import json
import logging
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic import config as configuration
from moesaic.errors import InputError
from moesaic.flow import current, describe, files, manifest, store, told, ui
from moesaic.flow.current import Found
from moesaic.flow.live import Live, live, live_from_environment
from moesaic.flow.store import git_commit
from moesaic.flow.told import places
from moesaic.schema import Config
from moesaic.settings import compared

__all__ = ["Live", "git_commit", "live", "live_from_environment", "places", "replay", "start"]

log = logging.getLogger("moesaic.track")
WORKSPACE = "tracking.json"
"""In results/: an id, so that two folders with equal configurations are never mixed up on a shared server."""
ARTIFACTS = (
    "manifest.json",
    "scores.json",
    "equivalence.json",
    "audit.json",
    "stats.json",
    "samples.json",
    "routing.parquet",
    "images.json",
    "decoded.png",
    "adapter/kernels.png",
)
LARGEST_ARTIFACT = 5_000_000


def start(config: Config, results: Path) -> str:
    """Create or migrate the database, open the parent run, note this invocation. Call it once, in the main process.

    Returns:
        The parent's run id; empty when an http server does not answer, which never stops a run.
    """
    try:
        client, experiment = store.open_experiment(config.track.uri, config.track.experiment)
        parent = _parent(client, experiment, config, results)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        count = sum(tag.startswith("moesaic.invocation.") for tag in parent.data.tags)
        note = f"{now} {git_commit()} {' '.join(sys.argv)}"
        store.log_tags(client, parent.info.run_id, {f"moesaic.invocation.{count + 1:03d}": note})
        client.update_run(parent.info.run_id, status="RUNNING")
        return str(parent.info.run_id)
    except Exception as error:
        if not store.is_http(config.track.uri):
            raise
        log.warning(
            "MLflow at %s: %s; going on, `moesaic sync` fills it later",
            config.track.uri,
            store.one_line(error),
        )
        return ""


def replay(
    config: Config, results: Path, status: str | None = None, found: Mapping[Path, Found] | None = None
) -> None:
    """Write all steps that ran, finished or not, into MLflow. Doing it again changes nothing.

    Args:
        status: FINISHED or FAILED closes the parent run; None leaves it open unless every step is finished.
        found: current.look of these results, where the caller has it.

    Raises:
        InputError: an http server does not answer; only without `status`, since tracking never stops a workflow.
    """
    found = current.look(config, results) if found is None else found
    try:
        count = _replay(config, results, status, found)
    except Exception as error:
        if not store.is_http(config.track.uri):
            raise
        reason = f"MLflow at {config.track.uri}: {store.one_line(error)}"
        if status is None:
            raise InputError(f"track.uri: {reason}") from error
        log.warning("%s; `moesaic sync` fills it later", reason)
        return
    log.info(
        "MLflow has %d steps of run %s in %s; look at them with `%s`",
        count,
        config.name,
        config.track.uri,
        ui.command(config.track.uri),
    )


# ---------------------------------------------------------------- steps


def _replay(config: Config, results: Path, status: str | None, found: Mapping[Path, Found]) -> int:
    """Returns how many steps of the configuration ran."""
    client, experiment = store.open_experiment(config.track.uri, config.track.experiment)
    parent = _parent(client, experiment, config, results)
    run_id, workspace = parent.info.run_id, _workspace(results)
    known = list(store.search(client, experiment, workspace=workspace, kind="step"))
    finished = [
        _replay_step(client, experiment, run_id, workspace, known, item, found, status)
        for item in found.values()
    ]
    if found[results].finished:
        _replay_parent(client, run_id, results)
        if config.track.register_models:
            from moesaic.card import register

            newest = (run for run in known if run.data.tags.get("moesaic.superseded") != "true")
            runs = {run.data.tags["moesaic.step_key"]: run.info.run_id for run in newest}
            register.models(client, config, found, runs)
    status = status or ("FINISHED" if all(finished) else None)
    if status and parent.info.status != status:
        client.set_terminated(run_id, status)
    return sum(item is not None for item in finished)


def _replay_step(
    client: Any,
    experiment: str,
    parent: str,
    workspace: str,
    known: list[Any],
    item: Found,
    found: Mapping[Path, Found],
    status: str | None,
) -> bool | None:
    """True: finished; False: begun; None: not begun, or with settings or inputs that are not the configuration's.

    A run that the latter have already is brought up to date and keeps its parent.

    Args:
        found: all steps, by folder.
    """
    place, done, mine = item.place, item.done, item.finished
    path = place.folder / "run.json"
    record_path = path if path.exists() else place.folder / "work" / "run.json"
    if not record_path.exists():
        return None
    record = json.loads(record_path.read_text(encoding="utf-8"))
    if done:
        settings, digest = done.settings, store.identity(done.settings, done.inputs)
    elif record["settings_digest"] == configuration.digest(compared(place.settings)):
        mine = all(found[path.parent].finished for path in place.inputs.values())
        settings = place.settings
        digest = store.identity(
            settings, {name: files.sha256(path) for name, path in place.inputs.items() if path.exists()}
        )
    else:
        return None
    started = record["started"]
    if mine:
        run = store.child(client, experiment, parent, workspace, known, place.key, digest, started)
    elif (run := store.find(known, place.key, digest, started)) is None:
        return None
    run_id = run.info.run_id
    store.supersede(client, known, place.key, run_id)
    state = told.state(place, record_path)
    if run.data.tags.get("moesaic.synced") != state:
        scores = told.scores(place) if done else []
        store.log_metrics(client, run, told.measured(place, record, done, scores))
        store.log_params(client, run, settings)
        store.log_tags(client, run_id, told.tags(place, record, done, scores))
        read = {name: made for name, path in place.inputs.items() if (made := found[path.parent].done)}
        store.log_datasets(client, run_id, describe.datasets(read, done.inputs if done else {}))
        for file in (place.folder / name for name in ARTIFACTS):
            if done and file.is_file() and file.stat().st_size <= LARGEST_ARTIFACT:
                client.log_artifact(run_id, str(file))
        client.set_tag(run_id, "moesaic.synced", state)
    running = not done and not status and (place.folder / "work" / "lease.json").exists()
    wanted = "FINISHED" if done else "RUNNING" if running else "FAILED"
    if run.info.status != wanted:
        if running:
            client.update_run(run_id, status=wanted)
        else:
            client.set_terminated(run_id, wanted, store.ms(record.get("ended")))
    return done is not None if mine else None


# ---------------------------------------------------------------- the parent


def _parent(client: Any, experiment: str, config: Config, results: Path) -> Any:
    """The workflow's run for this configuration and results folder."""
    raw = config.model_dump(mode="json", exclude={"track"})
    digest, workspace = configuration.digest(raw), _workspace(results)
    before = list(store.search(client, experiment, workspace=workspace, kind="workflow"))
    for run in before:
        if run.data.tags["moesaic.config_digest"] == digest:
            return run
    changed = describe.changes(store.params(raw), before[0].data.params) if before else []
    tags = {
        "moesaic.run": f"{config.name} {digest[:12]}",
        "moesaic.config_digest": digest,
        "moesaic.workspace": workspace,
        "moesaic.kind": "workflow",
        "moesaic.changed": "; ".join(changed)[: store.TAG_LENGTH],
        "mlflow.note.content": describe.workflow_note("; ".join(changed)),
        "mlflow.user": store.user(),
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git_commit(),
    }
    name = describe.workflow_title(config.name, changed)
    run = client.create_run(
        experiment, tags={key: value for key, value in tags.items() if value}, run_name=name
    )
    store.log_params(client, run, raw)
    return run


def _replay_parent(client: Any, run_id: str, results: Path) -> None:
    """The table of the report as metrics, its verdict as the run's description, the page as an artifact."""
    page, table = results / "report.html", results / "summary.json"
    run = client.get_run(run_id)
    state = files.sha256(results / manifest.NAME)
    if run.data.tags.get("moesaic.synced") == state:
        return
    from mlflow.entities import Metric

    summary = json.loads(table.read_text(encoding="utf-8"))
    ended = store.ms(json.loads((results / "run.json").read_text(encoding="utf-8"))["ended"])
    found = [
        Metric(store.clean(f"{row['label']}/{name}"), row[name]["value"], ended, 0)
        for row in summary["rows"]
        for name in ("bits_per_byte", "held_out", "accuracy")
        if row[name] is not None
    ]
    for i in range(0, len(found), store.METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=found[i : i + store.METRICS_PER_BATCH])
    note = describe.workflow_note(run.data.tags.get("moesaic.changed", ""), summary["verdict"])
    store.log_tags(client, run_id, {"mlflow.note.content": note})
    for path in (page, table):
        client.log_artifact(run_id, str(path))
    client.set_tag(run_id, "moesaic.synced", state)


def _workspace(results: Path) -> str:
    """An id of this folder, which it keeps when it moves. A copy beside it is another one, or on a shared server each would supersede the other's runs."""
    path, here = results / WORKSPACE, str(results.absolute())
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("folder") != here:
        other = Path(known.get("folder", here)) / WORKSPACE
        # the same file by another path is no copy
        copied = (
            other.is_file()
            and not other.samefile(path)
            and json.loads(other.read_text(encoding="utf-8")).get("workspace") == known["workspace"]
        )
        known = {"workspace": uuid.uuid4().hex if copied or not known else known["workspace"], "folder": here}
        files.write_json(path, known)
    return str(known["workspace"])
