"""The contract of a step: what its record keeps over attempts, and what a kill leaves behind."""

import contextlib
import json
import os
import platform
import time

import pytest

from moesaic.errors import Interrupted
from moesaic.flow import manifest
from moesaic.flow.step import Result, Step, execute

TOY = Step("pretrain", __name__, "toy")
SETTINGS = {"pretrain": {"steps": 3, "save_every": 2, "engine": {"kind": "torch"}}}


STOPS: list[str] = []


def toy(context):
    (context.out / "made.txt").write_text("made")
    if STOPS:
        raise Interrupted(STOPS.pop())
    return Result(["made.txt"])


def record(folder):
    return json.loads((folder / "run.json").read_text())


def killed(out, settings):
    STOPS.append("stopped")
    with pytest.raises(Interrupted):
        execute(TOY, settings, {}, out)


def test_attempts_add_up_when_only_how_it_runs_was_changed(tmp_path):
    out = tmp_path / "pretrain"
    killed(out, SETTINGS)
    first = record(out / "work")
    own = SETTINGS["pretrain"] | {"save_every": 1, "engine": {"kind": "deepspeed"}}
    execute(TOY, {"pretrain": own}, {}, out)
    assert (record(out)["attempts"], record(out)["started"]) == (2, first["started"])
    killed(out, SETTINGS)
    execute(TOY, {"pretrain": SETTINGS["pretrain"] | {"steps": 4}}, {}, out)
    assert record(out)["attempts"] == 1, "another step count is another beginning"


def test_a_kill_while_outputs_are_read_keeps_time_and_attempts(tmp_path, monkeypatch):
    out = tmp_path / "pretrain"
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(manifest.files, "sha256", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        execute(TOY, SETTINGS, {}, out)
    assert not (out / "run.json").exists(), "the mark of a finished step"
    execute(TOY, SETTINGS, {}, out)
    assert record(out)["attempts"] == 2
    assert manifest.read(out).outputs[0].path == "made.txt"


def test_what_killed_writers_of_any_host_left_is_swept(tmp_path):
    """A checkpoint's leftover is gigabytes. Other ranks may be writing while rank 0 sweeps."""
    out = tmp_path / "pretrain"
    (out / "work/checkpoints").mkdir(parents=True)
    mine, gone = f"{platform.node()}-{os.getpid()}", f"{platform.node()}-999999999"
    old = [
        ".model.tmp-node7-12",
        ".model.old-999999999",
        f"work/.log.tmp-{gone}",
        "work/checkpoints/.step-3.tmp-gpu-2-41",
    ]
    kept = [".model.tmp-node7-13", f".data.tmp-{mine}", ".notes", "model.tmp-node7-12"]
    for name in [*old, *kept]:
        (out / name).mkdir()
        (out / name / "weights").write_text("half")
    then = time.time() - 3600
    for path in [out / name / file for name in [*old, *kept[1:]] for file in ("weights", ".")]:
        os.utime(path, (then, then))
    (out / "evaluate").mkdir()
    (out / "evaluate/.other.tmp-node7-12").mkdir()  # of another step, below the dense parent's folder
    os.utime(out / "evaluate/.other.tmp-node7-12", (then, then))
    execute(TOY, SETTINGS, {}, out)
    assert [name for name in old if (out / name).exists()] == []
    assert [name for name in kept if not (out / name).exists()] == []
    assert (out / "evaluate/.other.tmp-node7-12").exists()
