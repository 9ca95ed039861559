"""A study of one stage on a tiny project: one line per finished run, nothing is done twice, differences are paired by seed."""

import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from test_probe import prepared  # noqa: F401

FOLDER = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("stages", FOLDER / "stages.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def settings(step="tune", **mixtures):
    return {
        "base": "config.yaml", "config": {}, "step": step, "variant": "activation", "seeds": [0, 1], "keep_models": False,
        "stage": {"steps": 20, "tokens": 2000, "batch": 4, "micro_batch": 4},
        "runs": {
            name: {"mixture": mixture}
            for name, mixture in ({"uniform": {"method": "static", "weights": "uniform"}} | mixtures).items()
        },
    }  # fmt: skip


def test_finished_runs_are_not_made_again(study, prepared, tmp_path, monkeypatch):  # noqa: F811
    gate = {"method": "gate-load", "weights": "uniform", "every": 2, "probe": {"rows": 8, "step_size": 30.0}}
    wanted = settings(gate=gate)
    own = study.execute
    made = []

    def execute(step, _settings, inputs, folder):
        made.append((step.name, folder.parent.name))
        own(step, _settings, inputs, folder)
        if len(made) == 3:
            raise KeyboardInterrupt  # after the step, before its line

    monkeypatch.setattr(study, "execute", execute)
    with contextlib.chdir(prepared):
        with pytest.raises(KeyboardInterrupt):
            study.train(wanted, tmp_path)
        assert made == [("tune", "uniform-0"), ("tune", "gate-0"), ("tune", "uniform-1")]
        assert len(study.finished(tmp_path)) == 2
        study.train(wanted, tmp_path)
        assert made[3:] == [("tune", "uniform-1"), ("tune", "gate-1")]
        study.train(wanted, tmp_path)
        assert len(made) == 5
        study.train(settings(gate=gate | {"every": 3}), tmp_path, only=["gate"])
        assert made[5:] == [("tune", "gate-0"), ("tune", "gate-1")]
        lines = study.finished(tmp_path)
        study.show(wanted, tmp_path)
    assert sorted((line["run"], line["seed"]) for line in lines) == [
        ("gate", 0),
        ("gate", 1),
        ("uniform", 0),
        ("uniform", 1),
    ]
    assert not list(tmp_path.glob("*/tune/model"))
    for line in lines:
        assert 2000 <= line["tokens"] < 2700
        assert set(line["loss"]) == {"digits", "words", "code", "shout"} == set(line["weights"])
        moved = any(len({value for _, value in values}) > 1 for values in line["weights"].values())
        assert moved == (line["run"] == "gate")
    assert lines[0]["drawn"] != lines[1]["drawn"]
    assert abs(lines[0]["loss"]["code"] - lines[1]["loss"]["code"]) > 1e-3
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("| run | seeds | tokens |")
    assert len(text.splitlines()) == 4
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


def test_differences_are_paired_by_seed(study):
    def line(name, seed, loss):
        return {"run": name, "seed": seed, "tokens": 100, "loss": {"a": loss, "b": loss + 1}}

    lines = [line("uniform", s, 2.0 + s) for s in range(3)] + [line("gate", s, 1.9 + s) for s in (0, 2)]
    head, _, uniform, gate = study.table(settings(gate={}), lines).splitlines()
    assert head.endswith("| a | b | mean | mean minus uniform |")
    assert uniform.split(" | ")[1] == "3"
    assert gate.rstrip(" |").endswith("-0.1000 ± 0.0000"), "seeds differ by 1, mixtures by 0.1 on each"
    with_one = study.table(settings(gate={}), [*lines[:1], *lines[3:4]])
    assert "±" not in with_one


def test_a_wrong_key_is_named(study, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(settings() | {"mixture": {}}))
    with pytest.raises(study.InputError, match="mixture"):
        study.load(path)
    path.write_text(json.dumps(settings()))
    assert study.load(path, ["seeds=[5]"])["seeds"] == [5]
    path.write_text(json.dumps(settings("distill")))
    with pytest.raises(study.InputError, match="step"):
        study.load(path)
    for name in ("sft_mixtures", "pretrain_mixtures"):
        wanted = study.load(
            FOLDER / f"{name}.yaml", [f"base={FOLDER.parent / study.load(FOLDER / f'{name}.yaml')['base']}"]
        )
        for run in wanted["runs"]:
            plan = study.planned(wanted, run)
            assert (
                plan.settings[wanted["step"]]["mixture"]["method"] == wanted["runs"][run]["mixture"]["method"]
            )


def test_pretraining_is_compared_the_same_way(study, prepared, tmp_path):  # noqa: F811
    wanted = settings("pretrain") | {"seeds": [0]}
    wanted["runs"]["no mask"] = {"document_mask": False}
    with contextlib.chdir(prepared):
        study.train(wanted, tmp_path)
        lines = study.finished(tmp_path)
    with_mask, without = (line["loss"] for line in lines)
    assert with_mask.keys() == without.keys()
    assert with_mask != without
    assert lines[0]["drawn"] == lines[1]["drawn"]
