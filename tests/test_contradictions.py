"""What a configuration asks for that could only fail hours later, or would do nothing, is refused at once."""

import pytest
from test_config import BASE, TWO

from moesaic import config, contradictions
from moesaic.errors import InputError


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
        (
            {"experts": {"shared": 0}, "pretrain": {"router": {"balance": "bias"}, "balance": 0.0}},
            "pretrain.router.balance: bias needs experts.family: glm4_moe",
        ),
        (
            {"pretrain": {"steps": 20, "mixture": {"method": "dynamic", "ceiling": 1.0}}},
            "pretrain.mixture.every: 100, and pretrain has 20 steps, so that dynamic never changes",
        ),
        (
            {"tune": {"steps": 100, "mixture": {"method": "gate-load"}}},
            "tune.mixture.every: 100, and tune has 100 steps, so that gate-load never changes",
        ),
        (
            {"evaluate": {"instructions": {"sources": ["c", "c"]}}},
            "evaluate.instructions.sources: c is named twice",
        ),
        (
            {"distill": {"data": "samples", "samples": {"sources": ["c", "c"]}}},
            "distill.samples.sources: c is named twice",
        ),
        ({"distill": {"loss": "sft", "offline": {}}}, "offline: the loss sft reads nothing of the teacher"),
        ({"distill": {"language_model": 1.0, "offline": {}}}, "offline: language_model is 1"),
        (
            {"pretrain": {"teacher": "dense", "teacher_weight": 0, "offline": {}}},
            "offline: teacher_weight is 0",
        ),
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


def test_mixtures_that_change_are_those_whose_classes_say_so():
    """The names stand in contradictions.py so that a check of the configuration imports no torch."""
    from moesaic.data.mixtures import METHODS

    assert set(contradictions.OBSERVING) == {name for name, item in METHODS.items() if item.OBSERVES}
    assert set(contradictions.UPDATED) == {
        name for name, item in METHODS.items() if item.OBSERVES or item.PROBES
    }
