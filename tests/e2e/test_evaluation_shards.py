"""An evaluation dealt out to several jobs: the same files to the byte, whatever the number; a killed shard repeats only its unfinished task."""

import os
import shutil

import project
import pytest
import torch

from moesaic import config
from moesaic.errors import InputError
from moesaic.evaluate import harness, shards
from moesaic.flow import manifest, paths
from moesaic.flow.step import STEPS, execute

SETTINGS = {
    "data": {
        "reliability": {
            "sets": ["sentences", "truthfulqa", "lookalikes"], "folder": "sets", "items": 3, "texts": 2, "answer_tokens": 3,
        }
    },
    "evaluate": {"suites": ["reliability"], "blocks": 2, "reliability": {"dola": {"layers": [1, 2]}}},
    "stages": ["construct"],
}  # fmt: skip
HEAD = "Question,Best Answer,Correct Answers,Incorrect Answers\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project up to its first evaluation."""
    root = tmp_path_factory.mktemp("prepared")
    path = project.make(root, SETTINGS)
    (root / "sets").mkdir()
    rows = "".join(f"this film number {i} was fine for you,{i % 2}\n" for i in range(6))
    (root / "sets/sentences.csv").write_text("sentence,label\n" + rows)
    truth = "".join(f"Does thing {i} grow?,No,No; Never,Yes; Always\n" for i in range(4))
    (root / "sets/TruthfulQA.csv").write_text(HEAD + truth)
    before = os.getcwd()
    os.chdir(root)
    for step in ("dense", "documents", "tokens", "tasks", "reliability"):
        project.run(path, step)
    os.chdir(before)
    return root


def step(name, count, shard=None):
    part = paths.Part(shard=shard) if shard is not None else None
    plan = paths.plan_step(
        config.load("config.yaml", {"evaluate": {"shards": count}}), name, None, "dense", part
    )
    execute(STEPS[name], plan.settings, plan.inputs, plan.out)
    return plan.out


def results(folder):
    names = ("scores.json", "items.parquet", "reliability.json", "samples.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """What one job gives; with one thread, as in the tests."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("whole") / "p"
    shutil.copytree(prepared, root)
    before = os.getcwd()
    os.chdir(root)
    found = results(step("evaluate", 1))
    os.chdir(before)
    return found


@pytest.mark.slow
def test_three_shards_one_of_them_killed(prepared, whole, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    real, ran = harness._evaluate, []

    def counted(lm, tasks, *rest):
        ran.extend((name, type(lm).__name__) for name in tasks["tasks"])
        if len(ran) == 2:
            raise KeyboardInterrupt
        return real(lm, tasks, *rest)

    monkeypatch.setattr(harness, "_evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        step("evaluate_part", 3, 0)
    done, unfinished = ran
    assert (
        not paths.folder("evaluate_part", None, "dense", paths.Part(shard=0)).joinpath(manifest.NAME).exists()
    )
    out = step("evaluate_part", 3, 0)
    assert ran[2] == unfinished
    assert done not in ran[2:]
    for shard in (1, 2):
        step("evaluate_part", 3, shard)
    every = [done, *ran[2:]]
    assert (
        len(every) == len(set(every)) == 1 + 6 + 3 + 3
    )  # lookalikes, styles, TruthfulQA without and with DoLa
    assert manifest.read(out).metrics["tasks"] == len(list((out / "tasks").glob("*.json"))) == 5

    monkeypatch.setattr(harness, "_evaluate", lambda *_: pytest.fail("a shard's task was evaluated again"))
    assert results(step("evaluate", 3)) == whole

    with (out / "tasks" / sorted(os.listdir(out / "tasks"))[0]).open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match=r"evaluate_part/dense/0"):
        step("evaluate", 3)


@pytest.mark.slow
def test_more_shards_than_tasks(prepared, whole, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    for shard in range(15):
        step("evaluate_part", 15, shard)
    assert manifest.read(paths.folder("evaluate_part", None, "dense", paths.Part(shard=14))).metrics == {
        "tasks": 0
    }
    assert results(step("evaluate", 15)) == whole


def test_every_task_is_in_one_shard(tmp_path):
    calls = [harness.Call("tasks", ["a", "b"], tmp_path), harness.Call("science", [], tmp_path), harness.Call("temporal", list("cdefg"), tmp_path)]  # fmt: skip
    for count in (1, 2, 3, 9):
        parts = [shards.share(calls, shard, count) for shard in range(count)]
        names = sorted(name for part in parts for call in part for name in call.tasks)
        assert names == list("abcdefg")
        sizes = [sum(len(call.tasks) for call in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert [call.source for call in shards.share(calls, 0, 1)] == ["tasks", "temporal"]


def test_a_shard_that_is_not_there(tmp_path):
    loaded = config.load(project.make(tmp_path), {"evaluate": {"shards": 2}})
    assert "part-1" in paths.inputs(loaded, "evaluate", "activation", "tune")
    with pytest.raises(InputError, match=r"shard 2 is not one of evaluate\.shards \(2\)"):
        paths.plan_step(loaded, "evaluate_part", None, "dense", paths.Part(shard=2))
    one = config.load(tmp_path / "config.yaml", {})
    with pytest.raises(InputError, match=r"1 shard is the evaluation itself"):
        paths.plan_step(one, "evaluate_part", None, "dense")
    assert not [name for name in paths.inputs(one, "evaluate", stage="dense") if name.startswith("part")]
    # The number of shards is no part of what is evaluated.
    settings = [paths.plan_step(item, "evaluate", None, "dense").settings for item in (one, loaded)]
    assert settings[0] == settings[1]
