"""The step `teacher` and the training on its cache, killed with -9 and run again: nothing lost, nothing twice, the same bytes."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import project
import pyarrow.parquet as pq
import pytest

from moesaic import config
from moesaic.flow import files, manifest, metrics, paths

OFFLINE = {"top": 32, "tail": 8, "shard_rows": 2, "batch": 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    own = {
        "stages": ["construct", "distill"],
        "distill": {"offline": OFFLINE, "loss": "jsd", "steps": 8, "save_every": 2},
    }
    path = project.make(folder, own)
    project.prepare(path)
    return folder


def start(folder, step, *extra):
    command = [
        sys.executable,
        "-m",
        "moesaic.cli",
        step,
        "--config",
        "config.yaml",
        "--variant",
        "activation",
        *extra,
    ]
    return subprocess.Popen([*command, "--threads", "1"], cwd=folder, stderr=subprocess.PIPE, text=True)


def finish(folder, step, *extra):
    process = start(folder, step, *extra)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return errors


def kill_when(process, ready):
    deadline = time.monotonic() + 600
    while not ready() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.mark.slow
def test_killed_teacher_and_student_equal_uninterrupted_ones(prepared, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    shutil.copytree(prepared, whole)
    shutil.copytree(prepared, broken)
    cached = paths.teacher_folder(config.load(prepared / "config.yaml"), "activation", "distill")
    trained = Path("results/activation/distill")
    finish(whole, "teacher", "--stage", "distill")
    finish(whole, "distill")
    shards = broken / cached / "shards"
    for count in (2, 9):
        kill_when(
            start(broken, "teacher", "--stage", "distill"),
            lambda n=count: len(list(shards.glob("*.parquet"))) >= n,
        )
        assert not (broken / cached / "manifest.json").exists()
    log = finish(broken, "teacher", "--stage", "distill")
    assert "shards are there already" in log
    assert manifest.read(broken / cached) == manifest.read(whole / cached)
    for split, rows in manifest.read(whole / cached).metrics["rows"].items():
        found = [
            pq.read_table(path, columns=["row"])["row"].to_pylist()
            for path in sorted(shards.glob(f"{split}-*"))
        ]
        assert [row for shard in found for row in shard] == list(range(rows["chat"])), (
            "a row is missing or there twice"
        )

    def steps():
        path = broken / trained / "work" / metrics.NAME
        return max((item["step"] for item in metrics.read(path)), default=0) if path.exists() else 0

    kill_when(start(broken, "distill"), lambda: steps() >= 3)
    assert "going on from step" in finish(broken, "distill")
    for name in ("manifest.json", "model/model.safetensors"):
        assert files.sha256(whole / trained / name) == files.sha256(broken / trained / name), name


@pytest.mark.slow
def test_two_ranks_share_the_shards(prepared, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(prepared, one)
    shutil.copytree(prepared, two)
    cached = paths.teacher_folder(config.load(prepared / "config.yaml"), "activation", "distill")
    finish(one, "teacher", "--stage", "distill")
    finish(two, "teacher", "--stage", "distill", "--ranks-per-node", "2")
    assert manifest.read(one / cached) == manifest.read(two / cached)
