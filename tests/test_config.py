"""The configuration: strict, typed, with messages that name the key, the value and what is allowed."""

import json
import re
from pathlib import Path

import pytest

from moesaic import cli, config
from moesaic.errors import InputError
from moesaic.settings import step_settings

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


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tune": {"mixture": {"weights": "llama"}}}, "tune.mixture.weights: llama is for domains of text"),
        ({"tune": {"mixture": {"weights": {"c": 0}}}}, "tune.mixture.weights: all weights are 0"),
        (
            {"pretrain": {"mixture": {"weights": {"b": 1}}}},
            "pretrain.mixture.weights: no text or instruction set named 'b'",
        ),
        ({"tune": {"router": {"gate": "tanh"}}}, "tune.router.gate: tanh"),
        (
            {"experts": {"family": "mixtral"}, "pretrain": {"router": {"balance": "bias"}}},
            "pretrain.router.balance: mixtral has no bias",
        ),
        ({"tune": {"depth": {"expand": {"method": "slerp"}}}}, "tune.depth: expand.method: slerp"),
        ({"distill": {"student": {"of": "dense", "per_token": 1}}}, "distill.student: per_token: a dense"),
        ({"distill": {"student": {"ffn": 64}}}, "distill.student: ffn: the width of a dense student"),
        ({"distill": {"student": {"per_token": 3}}}, "distill.student.per_token: 3 is more than"),
        ({"distill": {"teacher": "dense", "teacher_experts": "all"}}, "distill.teacher_experts: all"),
        ({"distill": {"student_text": ["d"]}}, "distill.student_text: no text or instruction set named 'd'"),
        (
            {"evaluate": {"instructions": {"sources": ["d"]}}},
            "evaluate.instructions.sources: no text or instruction set named 'd'",
        ),
        (
            {"stages": ["construct", "preference"], "data": {"temporal": {"train": 0}}},
            "data.temporal.train: 0",
        ),
        (
            {"evaluate": {"instructions": {}}, "data": {"chat": {"validation": 0}}},
            "data.chat.validation: 0, and evaluate.instructions",
        ),
        ({"evaluate": {"judge": {"url": "http://x", "model": "m"}}}, "evaluate.judge: scores the pictures"),
        ({"evaluate": {"reliability": {"dola": {}}}}, "evaluate.reliability.dola: decodes the reliability"),
        ({"evaluate": {"temporal_shots": [0, 5, 0]}}, "evaluate.temporal_shots: each number at most once"),
        ({"data": {"domains": {"a": {"held_out": True}}}}, "data.domains: all of them are held_out"),
        ({"data": {"chat": {"sources": []}}}, "stages: tune trains on conversations"),
        (
            {"tune": {"mixture": {"method": "dynamic", "reference": "llama-2-7b"}}},
            "tune.mixture.reference: llama-2-7b is for",
        ),
        (
            {"pretrain": {"mixture": {"weights": "llama"}}},
            "data.domains.a.like: pretrain.mixture.weights llama needs",
        ),
        (
            {"pretrain": {"mixture": {"method": "dynamic", "reference": "llama-2-7b", "ceiling": 1.0}}},
            "data.domains.a.like: pretrain.mixture.reference llama-2-7b needs",
        ),
        (
            {"pretrain": {"mixture": {"method": "dynamic", "reference": {"b": 1.0}, "ceiling": 1.0}}},
            "pretrain.mixture.reference.a: no reference loss",
        ),
        ({"pretrain": {"mixture": {"method": "dynamic"}}}, "pretrain.mixture.ceiling: 0.8 for each of 1 (a)"),
        (
            {"tune": {"mixture": {"method": "gate-load-robust", "floor": 1.0, "ceiling": 1.0}}, "data": TWO},
            "tune.mixture.floor: 1.0 for each of 2 is more than 1",
        ),
        (
            {"tune": {"mixture": {"method": "ref-loss"}}, "data": {"chat": {"validation": 0}}},
            "data.chat.validation: 0, and tune.mixture.method ref-loss",
        ),
        (
            {
                "stages": ["construct", "preference"],
                "preference": {"mixture": {"weights": {"maths": 1}}},
                "data": {"temporal": {}},
            },
            "preference.mixture.weights: no text or instruction set named 'maths'",
        ),
        (
            {
                "distill": {
                    "data": "samples",
                    "samples": {"text": "teacher"},
                    "mixture": {"weights": {"c-student": 1}},
                }
            },
            "distill.mixture.weights: no text or instruction set named 'c-student'",
        ),
        (
            {
                "stages": ["construct", "preference"],
                "data": {"temporal": {"tasks": ["shift_calendar"]}},
                "preference": {"kinds": ["math-time", "pure-time"]},
            },
            "preference.kinds: no task of data.temporal.tasks is pure-time",
        ),
        (
            {
                "tune": {"depth": {"of": "dense", "expand": {"every": 1}}},
                "distill": {"student": {"per_token": 1}},
            },
            "distill.student.per_token: tune.depth.of is dense",
        ),
        (
            {"tune": {"depth": {"of": "dense", "expand": {"every": 1}}, "router": {"capacity": 1.5}}},
            "tune.router.capacity: 1.5: the model of tune has no experts",
        ),
        (
            {"tune": {"router": {"frozen": True}, "optimizer": {"routers_first": 5}}},
            "optimizer.routers_first: 5 steps",
        ),
        ({"tune": {"optimizer": {"betas": [0.9, 1.0]}}}, "tune.optimizer.betas"),
        ({"name": "a/b"}, "name: string should match"),
        ({"variants": {"-a": {}}}, "variants.-a: a variant name"),
        ({"variants": {False: {}}}, "variants: a name must be text, got False; put it in quotes"),
        ({"experts": {"layers": {"0": {"split": "actvation"}}}}, "experts.layers: 0.split: input should be"),
        ({"experts": {"layers": {"5-3": {}}}}, "experts.layers: '5-3' ends before it begins"),
        ({"experts": {"layers": {"0-99999": {}}}}, "experts.layers: '0-99999' ends before it begins, or"),
    ],
)
def test_what_would_fail_when_a_stage_begins_is_refused_at_once(change, expected):
    with pytest.raises(InputError) as error:
        config.check(config.merge(BASE, change))
    assert expected in str(error.value)


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


@pytest.mark.parametrize(
    "own",
    [
        # both kinds by default, of which one is there
        {"stages": ["construct", "preference"], "data": {"temporal": {"tasks": ["shift_calendar"]}}},
        # depth routers are routers, in a dense model and beside frozen ones
        {
            "tune": {
                "depth": {"of": "dense", "skip": {"method": "route"}},
                "optimizer": {"routers_first": 3},
            },
            "distill": {"student": {"per_token": None}},
        },
        {
            "tune": {
                "depth": {"skip": {"method": "route"}},
                "router": {"frozen": True},
                "optimizer": {"routers_first": 3},
            }
        },
        # with and without a teacher, from one section
        {
            "pretrain": {"teacher": "dense", "loss": "rkl"},
            "variants": {"v": {}, "plain": {"pretrain": {"teacher": None}}},
        },
        {"pretrain": {"loss": "rkl"}, "variants": {"v": {"pretrain": {"teacher": "dense"}}}},
        {"pretrain": {"mixture": {"method": "dynamic", "reference": {"a": 2.0, "far": 2.0}, "ceiling": 1.0}}},
    ],
)
def test_what_only_looks_like_a_contradiction(own):
    far = {
        "data": {"domains": {"far": {"held_out": True, "sources": BASE["data"]["domains"]["a"]["sources"]}}}
    }
    config.check(config.merge(config.merge(BASE, far), own))


def test_layers_to_expand_after_need_no_every():
    own = {"tune": {"depth": {"expand": {"after": [3, 7]}}}}
    variant = config.variant_config(config.check(config.merge(BASE, {"variants": {"v": own}})), "v")
    assert (variant.tune.depth.expand.every, variant.tune.depth.expand.after) == (None, [3, 7])
    with pytest.raises(InputError, match="give one"):
        config.check(config.merge(BASE, {"tune": {"depth": {"expand": {"after": [3], "every": 2}}}}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pretrain": {"offline": {}}}, "set teacher: dense"),
        ({"pretrain": {"loss": "rkl"}}, "pretrain: loss: has no effect without a teacher"),
        ({"pretrain": {"temperature": 2}}, "pretrain: temperature: has no effect without a teacher"),
        (
            {"distill": {"data": "samples", "loss": "dpkd", "teacher": "moe", "teacher_experts": "all"}},
            "distill: teacher_experts: all is for losses on the teacher's tokens",
        ),
        ({"distill": {"data": "chat", "epochs": 3}}, "set data: samples"),
        (
            {"tune": {"router": {"expert_dropout": 0.1}, "engine": {"experts": "eager"}}},
            r"engine\.experts: eager",
        ),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_what_would_have_no_effect_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        config.check(config.merge(BASE, change))
