"""The step `teacher` and the training on its cache, killed with -9 and run again: nothing lost, nothing twice, the same bytes."""

import shutil
from pathlib import Path

import project
import pyarrow.parquet as pq
import pytest
from killing import came_to, command, finish, killed

from moesaic import config
from moesaic.flow import files, manifest, shared

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


TEACHER = command("teacher", "--stage", "distill")


@pytest.mark.slow
def test_killed_teacher_and_student_equal_uninterrupted_ones(prepared, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    shutil.copytree(prepared, whole)
    shutil.copytree(prepared, broken)
    cached = shared.teacher_folder(config.load(prepared / "config.yaml"), "activation", "distill")
    trained = Path("results/activation/distill")
    finish(whole, TEACHER, 900)
    finish(whole, command("distill"), 900)
    shards = broken / cached / "shards"
    for count in (2, 9):
        killed(broken, TEACHER, lambda n=count: len(list(shards.glob("*.parquet"))) >= n, 600)
        assert not (broken / cached / "manifest.json").exists()
    log = finish(broken, TEACHER, 900)
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

    killed(broken, command("distill"), lambda: came_to(broken / trained, 3), 600)
    assert "going on from step" in finish(broken, command("distill"), 900)
    for name in ("manifest.json", "model/model.safetensors"):
        assert files.sha256(whole / trained / name) == files.sha256(broken / trained / name), name


@pytest.mark.slow
def test_two_ranks_share_the_shards(prepared, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(prepared, one)
    shutil.copytree(prepared, two)
    cached = shared.teacher_folder(config.load(prepared / "config.yaml"), "activation", "distill")
    finish(one, TEACHER, 900)
    finish(two, [*TEACHER, "--ranks-per-node", "2"], 900)
    assert manifest.read(one / cached) == manifest.read(two / cached)
