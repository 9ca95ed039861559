"""kill -9 at random moments, then rerun: the result is that of an uninterrupted run, bit for bit, and no token is read twice."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import killing
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


OUT = Path("results/activation/pretrain")
CALL = killing.command("pretrain")


@pytest.mark.slow
def test_killed_three_times_equals_uninterrupted(prepared, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    shutil.copytree(prepared, whole)
    shutil.copytree(prepared, broken)
    killing.finish(whole, CALL)
    random.seed(os.getpid())
    moments = sorted(random.sample(range(1, STEPS - 1), 3))
    for moment in moments:
        killing.killed(broken, CALL, lambda at=moment: killing.steps_written(broken / OUT) >= at)
        assert not (broken / OUT / "manifest.json").exists()
    could = killing.saved(broken / OUT)
    assert ("going on from step" in killing.finish(broken, CALL)) == could
    for name in ("manifest.json", "model/model.safetensors"):
        assert files.sha256(whole / OUT / name) == files.sha256(broken / OUT / name), (
            f"{name} differs, killed at {moments}"
        )
    one, two = (metrics.series(folder / OUT / "work/metrics.jsonl") for folder in (whole, broken))
    for key in ("train/loss", "train/tokens", "mixture/drawn/code", "mixture/weight/code"):
        assert one[key] == two[key], f"{key} differs, killed at {moments}"
    assert len({value for _, value in one["mixture/weight/code"]}) == 4, (
        "the mixture was to change after steps 3, 6 and 9"
    )
    lines = [
        item for item in metrics.read(broken / OUT / "work/metrics.jsonl") if item["key"] == "train/loss"
    ]
    assert [item["step"] for item in lines] == list(range(1, STEPS + 1)), (
        "a step was logged twice or is missing"
    )
    assert json.loads((broken / OUT / "run.json").read_text())["attempts"] == 4


@pytest.mark.slow
def test_terminated_saves_and_exits_with_75(prepared, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(prepared, folder)
    process = killing.start(folder, CALL)
    while killing.steps_written(folder / OUT) < 3 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "checkpoint written" in errors
    saved = sorted(p.name for p in (folder / OUT / "work/checkpoints").iterdir())
    assert "going on from step" in killing.finish(folder, CALL), saved


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_its_removal_helps(prepared, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(prepared, folder)
    checkpoints = folder / OUT / "work/checkpoints"
    killing.killed(folder, CALL, lambda: len(list(checkpoints.glob("step-*"))) >= 2)
    newest = sorted(checkpoints.glob("step-*"))[-1]
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    process = killing.start(folder, CALL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"{newest.name}/weights.safetensors" in errors
    assert "delete" in errors
    assert "Traceback" not in errors
    shutil.rmtree(newest)
    assert "going on from step" in killing.finish(folder, CALL)
