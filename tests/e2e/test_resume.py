"""kill -9 at random moments, then rerun: the result is that of an uninterrupted run, bit for bit, and no token is read twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import project
import pytest

from moesaic.flow import files, metrics

STEPS = 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    mixture = {"method": "dynamic", "every": 3, "step_size": 0.5, "clip": 9.0}
    mixture["reference"] = {"code": 6.0, "prose": 6.6}
    router = {"balance": "importance-load", "noise": "learned", "learn_scale": True, "capacity": 1.2}
    own = {"steps": STEPS, "save_every": 2, "mixture": mixture, "router": router}
    path = project.make(folder, {"pretrain": own})
    project.prepare(path)
    return folder


def start(folder, *extra):
    command = project.pretrain_command(1, *extra)
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


def finish(folder, *extra):
    process = start(folder, *extra)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return errors


def steps_written(folder):
    path = folder / "results/activation/pretrain/work/metrics.jsonl"
    if not path.exists():
        return 0
    return max((item["step"] for item in metrics.read(path)), default=0)


@pytest.mark.slow
def test_killed_three_times_equals_uninterrupted(prepared, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    shutil.copytree(prepared, whole)
    shutil.copytree(prepared, broken)
    finish(whole)
    random.seed(os.getpid())
    moments = sorted(random.sample(range(1, STEPS - 1), 3))
    for moment in moments:
        process = start(broken)
        deadline = time.monotonic() + 120
        while steps_written(broken) < moment and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        assert not (broken / "results/activation/pretrain/manifest.json").exists()
    log = finish(broken)
    assert "going on from step" in log or moments[-1] < 2
    out = Path("results/activation/pretrain")
    for name in ("manifest.json", "model/model.safetensors"):
        assert files.sha256(whole / out / name) == files.sha256(broken / out / name), (
            f"{name} differs, killed at {moments}"
        )
    one, two = (metrics.series(folder / out / "work/metrics.jsonl") for folder in (whole, broken))
    for key in ("train/loss", "train/tokens", "mixture/drawn/code", "mixture/weight/code"):
        assert one[key] == two[key], f"{key} differs, killed at {moments}"
    assert len({value for _, value in one["mixture/weight/code"]}) == 4, (
        "the mixture was to change after steps 3, 6 and 9"
    )
    lines = [
        item for item in metrics.read(broken / out / "work/metrics.jsonl") if item["key"] == "train/loss"
    ]
    assert [item["step"] for item in lines] == list(range(1, STEPS + 1)), (
        "a step was logged twice or is missing"
    )
    assert json.loads((broken / out / "run.json").read_text())["attempts"] == 4


@pytest.mark.slow
def test_terminated_saves_and_exits_with_75(prepared, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(prepared, folder)
    process = start(folder)
    while steps_written(folder) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "checkpoint written" in errors
    saved = sorted(p.name for p in (folder / "results/activation/pretrain/work/checkpoints").iterdir())
    assert "going on from step" in finish(folder), saved


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_its_removal_helps(prepared, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(prepared, folder)
    process = start(folder)
    while steps_written(folder) < 6 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    newest = sorted((folder / "results/activation/pretrain/work/checkpoints").glob("step-*"))[-1]
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    process = start(folder)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"{newest.name}/weights.safetensors" in errors
    assert "delete" in errors
    assert "Traceback" not in errors
    shutil.rmtree(newest)
    assert "going on from step" in finish(folder)
