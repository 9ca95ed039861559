"""The engine: who is trained when, and how a DeepSpeed template becomes a configuration."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from test_objectives import batch
from tiny import tiny_llama, tiny_moe

from moesaic.errors import InputError
from moesaic.model import families
from moesaic.schema import Pretrain
from moesaic.train.engine import build, router_parameters
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.policy import DEFAULTS
from moesaic.train.streams import Row
from moesaic.train.validation import validate
from moesaic.train.zero import resolve

TEMPLATES = Path(__file__).parents[2] / "config" / "deepspeed"


class Rows:
    sizes = {"one word": 4, "many words": 4}  # noqa: RUF012

    def rows(self, samples):
        found = []
        for sample in samples:
            draw = np.random.default_rng(sample.row)
            ids = draw.integers(3, 512, 24) if sample.domain == "many words" else np.full(24, 7)
            found.append(Row(ids, np.append(ids[1:], -100)))
        return found


def validated(trainee, folder, rows=None):
    """A job that can be validated, on these rows."""
    rows = rows or Rows()
    wanted = {"validation_batches": 2, "micro_batch": 2}
    return Job(types.SimpleNamespace(name="x"), wanted, trainee, None, rows, rows, folder)


def settings(**optimizer):
    own = {"lr": 1e-2, "warmup": 0, **optimizer}
    return Pretrain(steps=10, batch=4, micro_batch=4, optimizer=own).model_dump(mode="json")


def test_routers_first_needs_routers():
    with pytest.raises(InputError, match=r"routers_first: 2 steps .* none to train"):
        build(Trainee(tiny_llama().train(), Weights()), settings(routers_first=2))


def test_a_validation_does_not_depend_on_the_ranks(tmp_path):
    """Balance losses, too, which are not linear in the rows of a batch: batches are made before they are dealt out."""
    trainee = Trainee(tiny_moe(tmp_path, shared=32, experts=8).model.train(), Weights())
    engine = build(trainee, settings())
    alone = validate(validated(trainee, tmp_path), engine)
    given: dict[int, list] = {0: [], 1: []}
    for rank in given:
        engine.rank, engine.world = rank, 2
        engine.sum = lambda values, rank=rank: given[rank].append(values.clone()) or values
        validate(validated(trainee, tmp_path), engine)
    turn = iter(zip(*given.values(), strict=True))
    engine.sum = lambda values: sum(next(turn))
    together = validate(validated(trainee, tmp_path), engine)
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, rel=1e-6), key


def test_routers_first_then_everything(tmp_path):
    model = tiny_moe(tmp_path, shared=32).model
    trainee = Trainee(model.train(), Weights(balance=0.01, router=DEFAULTS | {"noise": "learned"}))
    engine = build(trainee, settings(routers_first=2))
    routers = router_parameters(trainee)
    assert len(routers) == 3 + 1, "a router in each layer and the noise"

    def moved(steps):
        before = {name: p.detach().clone() for name, p in engine.parameters.items()}
        for step in steps:
            engine.forward_backward(batch(device=engine.device), last=True)
            engine.step(step)
        return {name: not torch.equal(before[name], p) for name, p in engine.parameters.items() if p.numel()}

    for name, changed in moved([0, 1]).items():
        assert changed == (id(engine.parameters[name]) in routers), name
    assert all(moved([2]).values())


def test_a_bfloat16_model_goes_on_with_the_float32_moments_of_a_deepspeed_checkpoint(tmp_path):
    trainee = Trainee(tiny_moe(tmp_path, shared=32).model.bfloat16().train(), Weights())
    engine = build(trainee, settings())
    engine.forward_backward(batch(device=engine.device), last=True)
    engine.step(0)
    stored = {name: value.float() for name, value in engine.optimizer_state().items()}
    engine.load_optimizer_state(stored)
    engine.forward_backward(batch(device=engine.device), last=True)
    engine.step(1)
    for name, value in engine.optimizer_state().items():
        assert value.dtype == (torch.float32 if name.endswith("/step") else torch.bfloat16), name


def test_decay_is_for_matrices_only(tmp_path):
    trainee = Trainee(tiny_moe(tmp_path, shared=32).model, Weights())
    engine = build(trainee, settings(weight_decay=0.3))
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0)
    assert sum(len(group["params"]) for group in engine.optimizer.param_groups) == len(engine.parameters)
    decay = {id(p): group["weight_decay"] for group in engine.optimizer.param_groups for p in group["params"]}
    assert decay[id(trainee.model.model.norm.weight)] == 0.0
    part = next(families.parts(trainee.model))
    assert decay[id(part.router.weight)] == decay[id(part.experts.down_proj)] == 0.3


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_templates_resolve(stage):
    template = json.loads((TEMPLATES / f"zero{stage}.json").read_text())
    found = resolve(template, micro_batch=4, passes=2, world=8, clip=0.5, hidden=100, bf16=True, cuda=False)
    assert '"auto"' not in json.dumps(found)
    assert (found["train_batch_size"], found["gradient_clipping"]) == (64, 0.5)
    assert found["bf16"]["enabled"] is True
    if stage == 3:
        assert found["zero_optimization"]["reduce_bucket_size"] == 10_000
    assert '"auto"' in json.dumps(template), "the template itself is left alone"
    template["zero_optimization"]["sub_group_size"] = "auto"
    with pytest.raises(InputError, match=r"zero_optimization\.sub_group_size: 'auto' is not known"):
        resolve(template, 4, 2, 8, 0.5, 100, True, False)


def test_expert_parallelism_is_refused():
    template = json.loads((TEMPLATES / "zero2.json").read_text())
    with pytest.raises(InputError, match="expert_parallel"):
        resolve(template | {"expert_parallel": {"enabled": True}}, 4, 2, 8, 0.5, 100, True, False)


def test_validation_tells_the_load_of_each_domain(tmp_path):
    """A domain whose tokens all go to the same experts, and one that is spread."""

    model = tiny_moe(tmp_path, shared=32, experts=8).model
    trainee = Trainee(model.train(), Weights())
    engine = build(trainee, settings())
    job = validated(trainee, tmp_path)
    found = validate(job, engine)
    # two of eight experts for every token: the most uneven there is, sqrt(8 / 2 - 1)
    assert found["valid/load_cv/one word"] == pytest.approx(3**0.5, abs=0.35)
    assert 0 < found["valid/load_cv/many words"] < found["valid/load_cv/one word"] - 0.5
    dense = validate(job, engine, Trainee(tiny_llama().eval(), Weights()))
    assert not any("load_cv" in key for key in dense)
