"""Tracking on a server: values go there while a step runs, a server that is down stops nothing, and its pages show the runs."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_runs import RESULTS, history, runs, step
from ports import free_port
from report import browser

from moesaic.errors import InputError
from moesaic.flow import live, manifest, track
from moesaic.flow.step import Context

MLFLOW_ERRORS = ("/ajax-api/2.0/mlflow/users/current", "ResizeObserver loop completed")
"""MLflow's own page asks for the logged-in user where no one can log in, and resizes its charts in a loop."""


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
