"""The configuration: strict, typed, with messages that name the key, the value and what is allowed."""

import json
import re
from pathlib import Path

import pytest

from moesaic import cli, config
from moesaic.errors import InputError
from moesaic.evaluate import kept
from moesaic.settings import compared, step_settings

BASE = {
    "model": {"at": {"kind": "folder", "path": "m"}},
    "data": {
        "domains": {"a": {"sources": [{"at": {"kind": "files", "path": "x"}}]}},
        "chat": {"sources": [{"at": {"kind": "files", "path": "c"}, "name": "c"}]},
    },
    "variants": {"v": {}},
}
TWO = {"chat": {"sources": [{"at": {"kind": "files", "path": name}, "name": name} for name in "cd"]}}


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
        (
            {"data": {"domains": {"en/web": {"sources": [{"at": {"kind": "files", "path": "x"}}]}}}},
            ["data.domains", "en/web: names are parts of file names"],
        ),
        (
            {"data": {"domains": {"average": {"sources": [{"at": {"kind": "files", "path": "x"}}]}}}},
            ["data.domains", "average is the name of a mean"],
        ),
    ],
)
def test_wrong_keys_are_named(change, expected):
    with pytest.raises(InputError) as error:
        config.check(config.merge(BASE, change))
    for part in expected:
        assert part in str(error.value)


def test_layers_hold_the_numbers_that_their_keys_would_hold():
    changes = {"experts": {"layers": {"0": {"ridge": "1e-4", "clustering": {}}}}}
    assert config.check(config.merge(BASE, changes)).experts.layers == {
        "0": {"ridge": 1e-4, "clustering": {}}
    }


def test_a_variant_inherits_what_was_given_and_no_part_of_a_default():
    changes = {"variants": {"v": {"distill": {"student": {"drop_layers": [1]}}}}, "tune": {"steps": 3}}
    loaded = config.check(config.merge(BASE, changes))
    own = config.variant_config(loaded, "v")
    assert (own.distill.student.per_token, own.distill.student.drop_layers) == (None, [1])
    assert loaded.distill.student.per_token == 1
    assert own.tune.steps == 3
    mixture = {"tune": {"mixture": {"method": "gate-load"}}}
    for changes in (mixture, {"variants": {"v": mixture}}):
        own = config.variant_config(config.check(config.merge(BASE, changes)), "v")
        assert own.tune.mixture.weights == "uniform"
    assert config.check(BASE).tune.mixture.weights == "size"


def test_an_override_wins_over_the_variant_too(tmp_path):
    changes = {"variants": {"v": {"tune": {"steps": 5, "batch": 16}}, "w": {}}}
    (tmp_path / "c.yaml").write_text(json.dumps(config.merge(BASE, changes)))
    loaded = config.load(tmp_path / "c.yaml", config.parse_override("tune.steps=7"))
    found = {name: config.variant_config(loaded, name).tune for name in ("v", "w")}
    assert {name: own.steps for name, own in found.items()} == {"v": 7, "w": 7}
    assert (found["v"].batch, found["w"].batch) == (16, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"seed: 1\nseed: 2\n", "the key 'seed' stands twice"),
        (b"name: 2024-13-45\n", "not valid YAML"),
        ("name: Größe\n".encode("latin-1"), "not text in UTF-8"),
    ],
)
def test_unreadable_files_are_named(tmp_path, text, expected):
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "c.yaml"))) as error:
        config.load(tmp_path / "c.yaml")
    assert expected in str(error.value)


def test_merge_keys_of_yaml_may_be_overridden(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert config.read(tmp_path / "c.yaml")["b"] == {"x": 3, "y": 2}


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tune": {"engine": {"kind": "deepspeed", "deepspeed": "gone.json"}}}, r"tune\.engine\.deepspeed: gone\.json: no such file"),
        ({"evaluate": {"task_shots": {"nothing": 2}}}, r"evaluate\.task_shots"),
        ({"model": {"chat_template": "gone"}}, r"model\.chat_template: gone"),
        (
            {"stages": ["construct", "tune", "distill"], "tune": {"depth": {"skip": {"method": "route"}}}, "distill": {"engine": {"kind": "deepspeed", "deepspeed": "zero3"}}},
            r"distill\..*ZeRO-3",  # of the stage after the one that makes the routers
        ),
    ],
)  # fmt: skip
def test_check_plans_every_step(tmp_path, changes, said):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.merge(BASE, changes)))
    arguments = cli.parser().parse_args(["check", str(path)])
    with pytest.raises(InputError, match=said):
        arguments.call(arguments)


def test_how_experts_run_changes_no_settings_until_it_is_asked_for():
    """A project that was finished before the key was there has nothing to do again."""
    own = step_settings(config.check(BASE), "pretrain", "v")["pretrain"]
    assert "experts" not in own["engine"]
    asked = config.check(config.merge(BASE, {"pretrain": {"engine": {"experts": "eager"}}}))
    assert step_settings(asked, "pretrain", "v")["pretrain"]["engine"]["experts"] == "eager"


def test_another_kind_replaces_where_something_lies_and_merges_elsewhere():
    base = config.merge(BASE, {"pretrain": {"engine": {"gradient_checkpointing": True}}})
    found = config.check(config.merge(base, config.parse_override("pretrain.engine.kind=fsdp")))
    assert (found.pretrain.engine.kind, found.pretrain.engine.gradient_checkpointing) == ("fsdp", True)
    moved = config.merge(BASE, {"model": {"at": {"kind": "hub", "repository": "a/b"}}})
    assert moved["model"]["at"] == {"kind": "hub", "repository": "a/b"}
    assert config.merge(BASE, {"model": {"at": {"path": "n"}}})["model"]["at"] == {
        "kind": "folder",
        "path": "n",
    }


def test_layers_to_expand_after_need_no_every():
    own = {"tune": {"depth": {"expand": {"after": [3, 7]}}}}
    variant = config.variant_config(config.check(config.merge(BASE, {"variants": {"v": own}})), "v")
    assert (variant.tune.depth.expand.every, variant.tune.depth.expand.after) == (None, [3, 7])
    with pytest.raises(InputError, match="give one"):
        config.check(config.merge(BASE, {"tune": {"depth": {"expand": {"after": [3], "every": 2}}}}))


def test_what_variants_differ_in_holds_the_keys_of_rounds_too():
    """The stage's own manifest lacks what only the steps before it read: pairs, sampling, rounds."""
    base = config.merge(BASE, {"stages": ["construct", "preference"], "data": {"temporal": {}}})
    changes = {
        "a": {"preference": {"pairs": "random"}},
        "b": {"preference": {"sampling": {"temperature": 0.5}, "rounds": 2}, "experts": {"experts": 16}},
    }
    own = config.check(config.merge(base, {"variants": None}) | {"variants": changes})
    found = step_settings(own, "report")["differ"]
    default = own.preference
    assert found == {
        "experts.experts": {"a": own.experts.experts, "b": 16},
        "preference.pairs": {"a": "random", "b": default.pairs},
        "preference.sampling.temperature": {"a": default.sampling.temperature, "b": 0.5},
        "preference.rounds": {"a": 1, "b": 2},
    }
    one = config.check(base | {"variants": {"a": changes["b"]}})
    assert step_settings(one, "report")["differ"] == {}


def test_the_order_of_domains_counts_where_it_is_not_the_alphabets():
    """A text that two domains have stays in the first; digests and Snakemake compare sorted keys."""

    def documents(*names):
        domains = dict.fromkeys(names, BASE["data"]["domains"]["a"])
        own = config.check(BASE | {"data": BASE["data"] | {"domains": domains}})
        return config.digest(step_settings(own, "documents"))

    assert documents("a", "z") != documents("z", "a")
    assert "order" not in step_settings(config.check(BASE), "documents")


def test_how_often_is_validated_and_how_many_are_asked_at_once_change_no_result():
    def seen(step, **changes):
        return config.digest(compared(step_settings(config.check(config.merge(BASE, changes)), step, "v")))

    assert seen("pretrain", pretrain={"validate_every": 7}) == seen("pretrain")
    assert seen("pretrain", pretrain={"balance": 0.5}) != seen("pretrain")
    for step in ("evaluate", "evaluate_part"):
        assert seen(step, evaluate={"batch": 2}) == seen(step)
        assert seen(step, evaluate={"items": 2}) != seen(step)
    own, other = (config.check(config.merge(BASE, {"evaluate": {"batch": n}})) for n in (2, 8))
    names = [
        kept.name_of("piqa_local", item.evaluate.model_dump(mode="json"), 1, "m", False)
        for item in (own, other)
    ]
    assert names[0] == names[1]
