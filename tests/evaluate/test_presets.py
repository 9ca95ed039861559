"""Published lists of tasks: names that lm-eval knows, examples as published, and the user's own on top."""

import importlib
from pathlib import Path

import pytest

from moesaic import config
from moesaic.errors import InputError
from moesaic.evaluate import harness, kept, presets, tasks
from moesaic.schema import Evaluate
from moesaic.settings import step_settings

RECIPES = Path(__file__).parents[2] / "config" / "recipes"


def test_every_published_name_is_a_task_of_lm_eval():
    known = tasks.harness_tasks(None)
    for name, published in presets.PRESETS.items():
        assert set(published) <= known, name


def test_the_users_tasks_and_examples_go_first():
    own = Evaluate(
        preset="llama-moe", tasks=["piqa", "toy"], shots=3, task_shots={"mmlu": 0, "toy": 1}
    ).model_dump(mode="json")
    found = presets.expand(own)
    assert found["tasks"] == [*presets.PRESETS["llama-moe"], "toy"]
    assert found["task_shots"]["arc_challenge"] == 25
    assert [kept.shots(found, name) for name in ("mmlu", "toy", "boolq", "other")] == [0, 1, 32, 3]
    plain = Evaluate(tasks=["toy"]).model_dump(mode="json")
    assert presets.expand(plain)["tasks"] == ["toy"]


def test_each_task_gets_its_own_number_and_a_change_is_a_new_score(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        harness,
        "_set_shots",
        lambda loaded, shots, seed, key: seen.update(dict.fromkeys(loaded, (shots, key))),
    )
    monkeypatch.setattr(harness, "_load", lambda manager, names: {"tasks": dict.fromkeys(names)})
    monkeypatch.setattr(harness, "_evaluate", lambda lm, item, settings, seed, chat: [])
    # Its class is made from the one that is replaced here, so it has to be there before.
    importlib.import_module("moesaic.evaluate.dola")
    monkeypatch.setattr("moesaic.evaluate.prefix.SharedPrefixLM", lambda *_, **__: type("LM", (), {})())
    own = Evaluate(tasks=["a", "b"], task_shots={"b": 5}).model_dump(mode="json")
    harness.run(None, None, own, tmp_path, tmp_path / "w", 0)
    assert seen == {"a": (0, "evaluate.shots"), "b": (5, "evaluate.task_shots.b")}
    changed = own | {"task_shots": {"b": 4}}
    paths = [[kept.name_of(name, item, 0, "x", False) for item in (own, changed)] for name in "ab"]
    assert paths[0][0] == paths[0][1], "of a task whose examples are the same the score is kept"
    assert paths[1][0] != paths[1][1]


def test_the_published_recipes_ask_for_it():
    loaded = config.load(RECIPES / "llama-moe-3.5b-4of16.yaml")
    settings = step_settings(loaded, "evaluate", "activation")["evaluate"]
    assert settings["task_shots"]["hellaswag"] == 10
    with pytest.raises(Exception, match="llama-moe"):
        Evaluate(preset="nothing")


def test_examples_for_a_task_that_is_not_asked_for_are_refused():
    own = Evaluate(tasks=["a"], task_shots={"aa": 5}).model_dump(mode="json")
    with pytest.raises(InputError, match=r"evaluate\.task_shots: aa is no task"):
        presets.expand(own)
