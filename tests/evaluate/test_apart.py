"""A task of two names is refused before anything is loaded or asked, also when another shard asks one of them."""

import pytest
import yaml

from moesaic.errors import InputError
from moesaic.evaluate import apart, harness, shards
from moesaic.schema import Evaluate


@pytest.fixture
def index(tmp_path):
    """Tasks a1, a2, b1; the tag `tagged`; groups: inner of a1 and a2, outer of inner, b1 and of what is defined in it."""
    from lm_eval.tasks import TaskManager

    for name in ("a1", "a2", "b1"):
        own = {"task": name, "dataset_path": "nowhere", "output_type": "multiple_choice"}
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump(own | ({"tag": "tagged"} if name != "a2" else {}))
        )
    defined = {"group": "here", "task": [{"task": "a2", "num_fewshot": 1}, {"task": "own", "num_fewshot": 1}]}
    for name, parts in (
        ("inner", ["a1", {"task": "a2", "num_fewshot": 2}]),
        ("outer", [{"group": "inner"}, "b1", defined]),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, "task": parts}))
    return TaskManager(include_path=str(tmp_path), include_defaults=False).task_index


def test_members(index):
    found = apart.members(index, ["a1", "tagged", "inner", "outer", "unknown"])
    assert found == {
        "a1": {"a1"},
        "tagged": {"a1", "b1"},
        "inner": {"a1", "a2"},
        "outer": {"a1", "a2", "b1", "outer::here::own"},
    }
    apart.check(apart.members(index, ["inner", "b1"]))
    for names in (["inner", "a1"], ["tagged", "outer"], ["outer", "inner"]):
        with pytest.raises(
            InputError, match=rf"evaluate\.tasks: a1 is part of {names[0]} and of {names[1]}; leave one"
        ):
            apart.check(apart.members(index, names))


def test_refused_before_a_task_is_loaded(index, tmp_path, monkeypatch):
    """The datasets of these tasks are nowhere, so that loading one would say so."""
    whole = harness.Call("tasks", ["b1", "inner", "a2"], tmp_path)
    settings = Evaluate(tasks=whole.tasks).model_dump(mode="json")
    for shard in range(3):
        (mine,) = shards.share([whole], shard, 3)
        assert len(mine.tasks) == 1
        with pytest.raises(
            InputError, match=r"evaluate\.tasks: a2 is part of .* and of .*; leave one of them out"
        ):
            mine.run(None, None, settings, tmp_path / "work", 0, None)
    (alone,) = shards.share([harness.Call("tasks", ["b1", "inner"], tmp_path)], 0, 2)
    with pytest.raises(InputError, match="b1 cannot be loaded"):
        alone.run(None, None, settings, tmp_path / "work", 0, None)
