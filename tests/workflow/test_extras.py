"""Packages beyond the core install are asked for before the run."""

import importlib.util
from pathlib import Path

import pytest

from moesaic import config
from moesaic.project import extras

CONFIGS = Path(__file__).parents[2] / "config"


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("config", {}),
        ("recipes/timo", {"deepspeed": "preference.engine.kind: deepspeed"}),
        ("recipes/science", {"science": "evaluate.suites: science"}),
        ("recipes/llama-moe-3.5b-4of16", {"deepspeed": "pretrain.engine.kind: deepspeed"}),
    ],
)
def test_what_the_shipped_configurations_need(name, needed):
    found = extras.needed(config.load(CONFIGS / f"{name}.yaml"))
    assert set(found) == set(needed)
    for extra, key in needed.items():
        assert found[extra].endswith(key.partition(".")[2]), found


def test_only_what_is_not_installed_is_told(monkeypatch):
    own = config.load(
        CONFIGS / "config.yaml",
        {"tune": {"adapter": {"method": "lora", "rank": 2}}, "pretrain": {"engine": {"kind": "deepspeed"}}},
    )
    assert extras.needed(own) == {
        "deepspeed": "pretrain.engine.kind: deepspeed", "lora": "tune.adapter.method: lora",
    }  # fmt: skip
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else real(name))
    (line,) = extras.missing(own)
    assert line.startswith(
        "tune.adapter.method: lora needs peft, which is not installed here: in the clone, pip install"
    )
    assert "'.[lora]'" in line
