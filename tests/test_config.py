"""The configuration: strict, typed, with messages that name the key, the value and what is allowed."""

import json
import re
from pathlib import Path

import pytest

from moesaic import config
from moesaic.errors import InputError
from moesaic.settings import step_settings

BASE = {
    "model": {"at": {"kind": "folder", "path": "m"}},
    "data": {"domains": {"a": {"sources": [{"at": {"kind": "files", "path": "x"}}]}}},
    "variants": {"v": {}},
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"experts": {"expert": 3}}, ["experts.expert", "unknown key", "did you mean 'experts'"]),
        ({"experts": {"split": "activaton"}}, ["experts.split", "'activaton'", "did you mean 'activation'"]),
        (
            {"data": {"domains": {"a": {"sources": [{"at": {"kind": "files", "pth": "x"}}]}}}},
            ["data.domains.a.sources.0.at.pth", "'path'"],
        ),
        ({"experts": {"per_token": 9}}, ["experts", "per_token (9)"]),
        ({"pretrain": {"batch": 5}}, ["pretrain", "micro_batch (4) must divide batch (5)"]),
        ({"stages": ["pretrain"]}, ["stages must start with construct"]),
        (
            {"variants": {"v": {"pretrain": {"stps": 3}}}},
            ["variants.v", "pretrain.stps", "did you mean 'steps'"],
        ),
        ({"variants": {"v": {"dta": {}}}}, ["variants.v.dta", "a variant may override"]),
        ({"variants": {"dense": {}}}, ["variants.dense"]),
        ({"seed": -1}, ["seed", "-1"]),
    ],
)
def test_wrong_keys_are_named(change, expected):
    with pytest.raises(InputError) as error:
        config.check(config.merge(BASE, change))
    for part in expected:
        assert part in str(error.value)


def test_all_errors_are_reported_at_once():
    with pytest.raises(InputError) as error:
        config.check(config.merge(BASE, {"seed": "x", "experts": {"shared": -1}}))
    assert "seed" in str(error.value)
    assert "experts.shared" in str(error.value)


def test_variant_overrides_only_what_it_names():
    loaded = config.check(
        config.merge(BASE, {"pretrain": {"steps": 7}, "variants": {"v": {"experts": {"shared": 8}}}})
    )
    own = config.variant_config(loaded, "v")
    assert own.experts.shared == 8
    assert own.pretrain.steps == 7
    assert loaded.experts.shared == 0


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("distill.steps", 9, {"distill"}),
        ("experts.ridge", 0.2, {"construct"}),
        ("data.domains.a.like", "c4", {"pretrain"}),
        ("evaluate.items", 3, {"evaluate"}),
        ("track.experiment", "other", set()),
    ],
)
def test_a_key_touches_only_its_step(key, value, changed):
    steps = [
        "dense",
        "documents",
        "tokens",
        "chat",
        "tasks",
        "construct",
        "pretrain",
        "tune",
        "distill",
        "evaluate",
    ]
    shared = {"dense", "documents", "tokens", "chat", "tasks"}
    before = config.check(BASE)
    after = config.check(config.merge(BASE, config.parse_override(f"{key}={json.dumps(value)}")))

    def all_settings(loaded):
        return {step: step_settings(loaded, step, None if step in shared else "v") for step in steps}

    one, two = all_settings(before), all_settings(after)
    assert {step for step in steps if one[step] != two[step]} == changed


@pytest.mark.parametrize("override", ["a={x", "a.b=[1", "a", "=1"])
def test_a_broken_override_is_named(override):
    with pytest.raises(InputError, match=re.escape(f"--set {override}: ")):
        config.parse_override(override)


def test_schema_file_is_fresh():
    stored = json.loads(Path("config/schema.json").read_text())
    assert stored == config.json_schema(), "run: moesaic schema config/schema.json"


def test_the_default_configuration_and_recipes_are_valid():
    for path in [Path("config/config.yaml"), *Path("config/recipes").glob("*.yaml")]:
        config.load(path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="no such configuration file"):
        config.load(tmp_path / "no.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(InputError, match="not valid YAML"):
        config.load(bad)


def test_how_experts_run_changes_no_settings_until_it_is_asked_for():
    """A project that was finished before the key was there has nothing to do again."""
    own = step_settings(config.check(BASE), "pretrain", "v")["pretrain"]
    assert "experts" not in own["engine"]
    asked = config.check(config.merge(BASE, {"pretrain": {"engine": {"experts": "eager"}}}))
    assert step_settings(asked, "pretrain", "v")["pretrain"]["engine"]["experts"] == "eager"
