"""MLflow from files: replaying is idempotent, resumed steps keep their run, changed ones get a new one, servers may be down."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_port
from report import browser, fake_results

from moesaic.errors import InputError
from moesaic.flow import describe, files, live, manifest, store, track
from moesaic.flow.step import Context

RESULTS = Path("results")
MLFLOW_ERRORS = ("/ajax-api/2.0/mlflow/users/current", "ResizeObserver loop completed")
"""MLflow's own page asks for the logged-in user where no one can log in, and resizes its charts in a loop."""
TABLES = ("runs", "metrics", "latest_metrics", "params", "tags", "experiments", "datasets", "inputs")


@pytest.fixture(scope="module")
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


def counts() -> dict[str, int]:
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        return {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}


def runs(config, **tags: str) -> list:
    client, experiment = store.open_experiment(config.track.uri, config.track.experiment)
    return list(store.search(client, experiment, **tags))


def step(config, key: str):
    """The current run of a step."""
    found = [
        run
        for run in runs(config, kind="step", step_key=key)
        if run.data.tags.get("moesaic.superseded") != "true"
    ]
    assert len(found) == 1
    return found[0]


def history(config, run, key: str) -> list[tuple[int, float]]:
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    return sorted((item.step, item.value) for item in client.get_metric_history(run.info.run_id, key))


def pretrain_again(config, **training) -> None:
    """The pretrain step of `activation`, made once more with changed settings."""
    known = manifest.read(Path("results/activation/pretrain")).metrics
    fake_results.finish(config, "pretrain", ["model"], known | {"steps": 1} | training, "activation")


def test_three_replays_give_the_same_rows(config):
    parent = track.start(config, RESULTS)
    track.replay(config, RESULTS, "FINISHED")
    first = counts()
    for run in runs(config, kind="step"):  # without the short cut for what is up to date
        store.open_experiment(config.track.uri, config.track.experiment)[0].delete_tag(
            run.info.run_id, "moesaic.synced"
        )
    track.replay(config, RESULTS, "FINISHED")
    track.replay(config, RESULTS)
    assert counts() == first
    steps = len(list(track.places(config, RESULTS)))
    assert first["runs"] == 1 + steps
    lines = sum(len(path.read_text().splitlines()) for path in RESULTS.glob("*/*/work/metrics.jsonl"))
    assert first["metrics"] > lines > 0
    (workflow,) = runs(config, kind="workflow")
    assert workflow.info.run_id == parent
    assert workflow.info.status == "FINISHED"
    assert {run.info.status for run in runs(config, kind="step")} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(config, kind="step")} == {parent}


def test_what_a_step_run_holds(config):
    track.replay(config, RESULTS, "FINISHED")
    run = step(config, "activation/pretrain")
    assert run.info.run_name == "activation / pretrain"
    recorded = [
        json.loads(line)
        for line in (RESULTS / "activation/pretrain/work/metrics.jsonl").read_text().splitlines()
    ]
    losses = [(item["step"], item["value"]) for item in recorded if item["key"] == "train/loss"]
    assert history(config, run, "train/loss") == losses
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    stamps = {item.timestamp for item in client.get_metric_history(run.info.run_id, "train/loss")}
    assert stamps == {item["ts"] for item in recorded if item["key"] == "train/loss"}
    assert run.data.params["pretrain.optimizer.lr"] == "0.0003"
    assert run.data.params["pretrain.mixture.weights"] == "uniform"
    tags = run.data.tags
    assert (tags["moesaic.variant"], tags["moesaic.stage"], tags["moesaic.host"]) == (
        "activation",
        "pretrain",
        "node1",
    )
    assert tags["moesaic.slurm_job_id"] == "117"
    assert tags["mlflow.source.git.commit"].startswith("0123456789abcdef")
    assert tags["moesaic.input.tokens"] == files.sha256(RESULTS / "prepare/tokens/manifest.json")
    assert tags["mlflow.note.content"] == "Continual pre-training on text."
    assert (tags["mlflow.source.name"], tags["moesaic.command"]) == ("moesaic pretrain", "moesaic pretrain")
    (read,) = run.inputs.dataset_inputs
    assert (read.dataset.name, tags["moesaic.input.tokens"][:36]) == ("tokens", read.dataset.digest)
    assert json.loads(read.dataset.source)["uri"] == "results/prepare/tokens"
    assert run.info.end_time - run.info.start_time == 150_000
    scores = json.loads((RESULTS / "random/evaluate/construct/scores.json").read_text())
    evaluation = step(config, "random/evaluate/construct")
    assert evaluation.info.run_name == "random / construct / evaluate", "the model first: columns are narrow"
    average = next(item["value"] for item in scores if item["task"] == "text/average")
    assert evaluation.data.tags["mlflow.note.content"].startswith(f"{average:.3f} bits per byte")
    for score in scores:
        assert evaluation.data.metrics[f"eval/{score['task']}/{score['metric']}"] == score["value"]
    names = [item.path for item in client.list_artifacts(evaluation.info.run_id)]
    assert names == ["manifest.json", "routing.parquet", "samples.json", "scores.json"]
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["manifest.json", "model"]
    entry = [item.path for item in client.list_artifacts(run.info.run_id, "model")]
    assert entry == ["model/MLmodel", "model/README.md", "model/moesaic.json"], "no weights"


def test_parent_holds_the_report(config):
    track.replay(config, RESULTS, "FINISHED")
    (parent,) = runs(config, kind="workflow")
    summary = json.loads((RESULTS / "summary.json").read_text())
    assert parent.info.run_name == "default"
    assert parent.data.tags["mlflow.note.content"] == summary["verdict"]
    assert (
        parent.data.metrics["activation/pretrain/bits_per_byte"]
        == summary["rows"][2]["bits_per_byte"]["value"]
    )
    assert parent.data.params["pretrain.steps"] == str(config.pretrain.steps)
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {
        "report.html",
        "summary.json",
    }
    assert Path("mlartifacts").is_dir()


def test_invocations_are_appended(config):
    first, second = track.start(config, RESULTS), track.start(config, RESULTS)
    assert first == second
    (parent,) = runs(config, kind="workflow")
    assert parent.info.status == "RUNNING"
    assert sum(tag.startswith("moesaic.invocation.") for tag in parent.data.tags) == 2


def test_killed_and_resumed_step_keeps_its_run_and_has_no_step_twice(config):
    folder = RESULTS / "activation/pretrain"
    log = folder / "work" / "metrics.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    kept = {name: (folder / name).read_text() for name in ("run.json", "manifest.json")}
    fake_results.unfinish(folder)
    log.write_text("".join(line for line in whole if json.loads(line)["step"] <= 12))
    track.start(config, RESULTS)
    track.replay(config, RESULTS, "FAILED")
    before = step(config, "activation/pretrain")
    assert before.info.status == "FAILED"
    assert max(history(config, before, "train/loss"))[0] == 12
    assert runs(config, kind="workflow")[0].info.status == "FAILED"

    # The resume goes back to the checkpoint at step 8 and logs 9 to 12 again, with later time stamps.
    lines = [json.loads(line) for line in whole]
    again = [line | {"ts": line["ts"] + 3_600_000 * (line["step"] > 8)} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in again))
    for name, text in kept.items():
        (folder / name).write_text(text)
    assert track.start(config, RESULTS) == runs(config, kind="workflow")[0].info.run_id
    track.replay(config, RESULTS, "FINISHED")
    after = step(config, "activation/pretrain")
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert [item[0] for item in history(config, after, "train/loss")] == list(
        range(1, config.pretrain.steps + 1)
    )
    assert runs(config, kind="workflow")[0].info.status == "FINISHED"


def test_changed_setting_gives_a_new_run_and_supersedes_the_old_one(config):
    track.replay(config, RESULTS, "FINISHED")
    old, other = step(config, "activation/pretrain"), step(config, "random/pretrain")
    (old_parent,) = runs(config, kind="workflow")
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["variants"]["activation"]["pretrain"] = {"steps": 7}
    changed = fake_results.configuration.check(raw)
    pretrain_again(changed)
    track.start(changed, RESULTS)
    track.replay(changed, RESULTS, "FINISHED")
    new = step(changed, "activation/pretrain")
    assert new.info.run_id != old.info.run_id
    (superseded,) = [
        run for run in runs(config, step_key="activation/pretrain") if run.info.run_id == old.info.run_id
    ]
    assert superseded.data.tags["moesaic.superseded"] == "true"
    assert new.data.params["pretrain.steps"] == "7"
    assert new.data.tags["moesaic.superseded"] == "false", "MLflow's search finds no runs without the tag"
    (parent,) = [run for run in runs(changed, kind="workflow") if run.info.run_id != old_parent.info.run_id]
    assert parent.info.run_name == "default (variants.activation.pretrain.steps: none -> 7)"
    assert parent.data.tags["mlflow.note.content"].endswith(f"before: {parent.data.tags['moesaic.changed']}")
    assert superseded.data.tags["mlflow.parentRunId"] == old_parent.info.run_id
    kept = step(changed, "random/pretrain")
    assert kept.info.run_id == other.info.run_id, "a step that did not run again keeps its run"
    assert (
        kept.data.tags["mlflow.parentRunId"] == new.data.tags["mlflow.parentRunId"] != old_parent.info.run_id
    )


def test_changed_input_gives_a_new_run(config):
    track.replay(config, RESULTS)
    old = step(config, "activation/pretrain")
    path = RESULTS / "prepare/tokens/manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"step_version": 99}))
    pretrain_again(config)
    track.replay(config, RESULTS)
    assert step(config, "activation/pretrain").info.run_id != old.info.run_id


def test_step_made_afresh_with_equal_settings_gives_a_new_run(config):
    """Its metrics would otherwise be drawn over the old ones."""
    track.replay(config, RESULTS)
    old = step(config, "activation/pretrain")
    path = RESULTS / "activation/pretrain/run.json"
    files.write_json(path, json.loads(path.read_text()) | {"started": "2026-11-24T09:00:00+00:00"})
    track.replay(config, RESULTS)
    assert step(config, "activation/pretrain").info.run_id != old.info.run_id


def test_running_step_is_shown_as_running(config):
    folder = RESULTS / "random/pretrain"
    fake_results.unfinish(folder)
    files.write_json(folder / "work" / "lease.json", {})
    track.start(config, RESULTS)
    track.replay(config, RESULTS)
    assert step(config, "random/pretrain").info.status == "RUNNING"
    assert runs(config, kind="workflow")[0].info.status == "RUNNING", (
        "sync closes nothing that is not finished"
    )
    (folder / "work" / "lease.json").unlink()
    track.replay(config, RESULTS)
    assert step(config, "random/pretrain").info.status == "FAILED"


def test_two_folders_with_equal_configurations_do_not_mix(config, tmp_path, monkeypatch):
    uri = f"sqlite:///{Path('mlflow.db').absolute()}"
    shared = config.model_copy(update={"track": config.track.model_copy(update={"uri": uri})})
    track.replay(shared, RESULTS)
    shutil.copytree("results", tmp_path / "other" / "results", ignore=shutil.ignore_patterns(track.WORKSPACE))
    monkeypatch.chdir(tmp_path / "other")
    track.replay(shared, RESULTS)
    assert len(runs(shared, kind="workflow")) == 2
    assert not runs(shared, superseded="true")


def test_moved_folder_finds_its_artifacts(config, tmp_path, monkeypatch):
    track.replay(config, RESULTS)
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    before = counts()
    track.start(config, RESULTS)
    track.replay(config, RESULTS)
    assert counts() | {"tags": 0} == before | {"tags": 0}
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    run = step(config, "dense/evaluate")
    assert "/there/mlartifacts/" in run.info.artifact_uri
    assert "scores.json" in [item.path for item in client.list_artifacts(run.info.run_id)]


def test_long_settings_are_cut_and_odd_names_cleaned():
    assert store.clean("valid/loss/été, 100 %") == "valid/loss/_t__ 100 _"
    flat = store.flatten({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None}, ".")
    assert flat == {"a.b": [1, {"c": 2}], "a.d": {}, "e": None}


def test_changes_name_keys_and_whole_variants():
    old = {"name": "a", "distill.steps": "10", "variants.x.experts.split": "random", "tune.steps": "3"}
    new = {
        "name": "a",
        "distill.steps": "20",
        "variants.y.experts.split": "random",
        "variants.y.experts.shared": "5",
    }
    found = describe.changes(new, old)
    assert found == [
        "distill.steps: 10 -> 20", "variant y added", "variant x removed", "tune.steps: 3 -> none",
    ]  # fmt: skip
    assert describe.workflow_title("a", found) == "a (distill.steps: 10 -> 20, 3 more)"
    assert describe.workflow_title("a", describe.changes(old, old)) == "a"
    assert describe.changes({"k": "v" * 100}, {}) == [f"k: none -> {'v' * 37}..."]


def test_every_step_run_has_a_description(config):
    track.replay(config, RESULTS, "FINISHED")
    for run in runs(config, kind="step"):
        assert run.data.tags["mlflow.note.content"], run.info.run_name


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


# ---------------------------------------------------------------- a server


def http_config(config, port: int):
    return config.model_copy(
        update={"track": config.track.model_copy(update={"uri": f"http://127.0.0.1:{port}"})}
    )


@contextlib.contextmanager
def server(port: int):
    """`make ui`, as it is, on another port."""
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow.db"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with Path("server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            assert process.poll() is None, Path("server.log").read_text()
            assert time.monotonic() < deadline, Path("server.log").read_text()
            time.sleep(0.3)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def training_context(monkeypatch, config, parent: str) -> Context:
    """What the training loop of activation/pretrain sees, in the environment that the workflow leaves."""
    monkeypatch.setenv("MOESAIC_TRACKING_URI", config.track.uri)
    monkeypatch.setenv("MOESAIC_EXPERIMENT", config.track.experiment)
    monkeypatch.setenv("MOESAIC_PARENT_RUN", parent)
    folder = RESULTS / "activation/pretrain"
    place = next(place for place in track.places(config, RESULTS) if place.key == "activation/pretrain")
    inputs = {name: manifest.read(path) for name, path in place.inputs.items()}
    return Context(place.settings, inputs, folder, folder / "work", place.key)


def logged(folder: Path) -> dict[int, tuple[dict[str, float], int]]:
    """step -> (values, time stamp) of a metrics file."""
    found: dict[int, tuple[dict[str, float], int]] = {}
    for line in map(json.loads, (folder / "work" / "metrics.jsonl").read_text().splitlines()):
        found.setdefault(line["step"], ({}, line["ts"]))[0][line["key"]] = line["value"]
    return found


def test_live_only_with_a_server_and_a_parent(config, monkeypatch):
    assert track.live_from_environment(training_context(monkeypatch, config, "abc")) is None
    assert track.live_from_environment(training_context(monkeypatch, http_config(config, 1), "")) is None


def test_server_that_is_down_never_stops_anything(config, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    down = http_config(config, free_port())
    assert track.start(down, RESULTS) == ""
    track.replay(down, RESULTS, "FINISHED")
    with pytest.raises(InputError, match=r"track\.uri: MLflow at http"):
        track.replay(down, RESULTS)
    folder = RESULTS / "activation/pretrain"
    shutil.copy(folder / "run.json", folder / "work" / "run.json")
    caplog.clear()
    writer = track.live_from_environment(training_context(monkeypatch, down, "0" * 32))
    assert writer is not None
    began = time.monotonic()
    for number in range(50):
        writer.log(number, {"train/loss": 1.0}, 1_790_000_000_000 + number)
    assert time.monotonic() - began < 1.0, "training does not wait for the server"
    time.sleep(0.5)
    writer.log(51, {"train/loss": 1.0}, 1_790_000_000_051)
    writer.close()
    complaints = [record for record in caplog.records if "training goes on" in record.getMessage()]
    assert len(complaints) == 1


def test_full_queue_drops_values_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(live.Live, "_work", lambda self: None)
    writer = live.Live(
        "http://127.0.0.1:1", "moesaic", "parent", "key", "digest", "2026-11-23T09:00:00+00:00"
    )
    for number in range(live.QUEUE + 5):
        writer.log(number, {"a": 1.0}, number)
    assert len([record for record in caplog.records if "queue is full" in record.getMessage()]) == 1
    writer.close()


@pytest.mark.slow
def test_live_then_replay_fills_the_gaps_without_duplicates(config, monkeypatch):
    port = free_port()
    served = http_config(config, port)
    folder = RESULTS / "activation/pretrain"
    shutil.copy(folder / "run.json", folder / "work" / "run.json")
    steps = logged(folder)
    with server(port):
        parent = track.start(served, RESULTS)
        assert parent
        context = training_context(monkeypatch, served, parent)
        writer = track.live_from_environment(context)
        assert writer is not None
        for number in (1, 2, 3, 6, 7, 8):  # 4 and 5 never arrive
            writer.log(number, *steps[number])
        writer.close()
        run = step(served, "activation/pretrain")
        assert run.info.status == "RUNNING"
        assert [item[0] for item in history(served, run, "train/loss")] == [1, 2, 3, 6, 7, 8]
        again = track.live_from_environment(
            context
        )  # resumed from the checkpoint at step 6: 7 and 8 come again
        assert again is not None
        for number in (7, 8, 9):
            values, ts = steps[number]
            again.log(number, values, ts + 3_600_000)
        again.close()
        assert [item[0] for item in history(served, run, "train/loss")] == [1, 2, 3, 6, 7, 8, 9]
        track.replay(served, RESULTS, "FINISHED")
        assert step(served, "activation/pretrain").info.run_id == run.info.run_id
        expected = [(number, values["train/loss"]) for number, (values, _) in sorted(steps.items())]
        assert history(served, run, "train/loss") == expected
        assert step(served, "activation/pretrain").info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.browser
def test_mlflow_pages_show_the_runs(config):
    if browser.find() is None:
        assert not os.environ.get("MOESAIC_REQUIRE_BROWSER"), (
            "MOESAIC_REQUIRE_BROWSER is set, but there is no Chromium"
        )
        pytest.skip("needs headless Chromium")
    track.start(config, RESULTS)
    track.replay(config, RESULTS, "FINISHED")
    run, (parent,) = step(config, "activation/pretrain"), runs(config, kind="workflow")
    port = free_port()
    address = f"http://127.0.0.1:{port}/#/experiments/{run.info.experiment_id}"
    text = "document.body.innerText"

    def has(*words: str) -> str:
        return " && ".join(f"{text}.includes({json.dumps(word)})" for word in words)

    with server(port):
        pages = {
            f"{address}/runs/{run.info.run_id}": (
                "activation / pretrain",
                "train/loss",
                "pretrain.optimizer.lr",
                "Finished",
            ),
            f"{address}/runs/{run.info.run_id}/model-metrics": ("activation / pretrain", "train"),
            f"{address}/runs/{parent.info.run_id}": ("default", "activation after pretrain runs"),
            f"{address}/runs": ("default",),
        }
        for url, words in pages.items():
            seen = browser.visit(
                url, [text], wait_for=f"document.body && {has(*words)}", width=1600, height=1400
            )
            elsewhere = [
                request
                for request in seen.requests
                if request.startswith("http") and f":{port}/" not in request
            ]
            assert elsewhere == []
            errors = [error for error in seen.errors if not any(part in error for part in MLFLOW_ERRORS)]
            assert errors == []
