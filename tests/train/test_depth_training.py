"""Depth routers in training: hand-computed annealing and budgets, gradients, padding, recomputation, equal budgets on two ranks, exact resume."""

import copy
import math
import types

import pytest
import torch
from test_engine import settings, validated
from test_objectives import batch
from tiny import tiny_llama, tiny_moe

from moesaic.errors import InputError
from moesaic.model import depth
from moesaic.model.depth import skip, steer
from moesaic.schema import Depth, Tune
from moesaic.train import zero
from moesaic.train.engine import build
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.validation import validate

ROUTE = {"capacity": 0.5, "anneal": 0}
FAMILIES = {
    "llama": None,
    "mixtral": {},
    "granitemoeshared": {"shared": 32},
    "qwen2_moe": {"shared": 32, "family": "qwen2_moe", "dense_layers": [1]},
    "glm4_moe": {"shared_experts": 1, "experts": 3, "family": "glm4_moe"},
}


def made(model=None, weights=None, train="all", expand=None, **route):
    """A trainee with depth routers in every layer."""
    model = tiny_llama() if model is None else model
    own = Depth(skip=ROUTE | route, train=train, expand=expand).model_dump(mode="json")
    depth.prepare(model, own, lambda rows: [])
    return Trainee(model.train(), Weights(**(weights or {}), depth=own["skip"]))


@pytest.fixture(params=list(FAMILIES))
def model(request, tmp_path):
    own = FAMILIES[request.param]
    return tiny_llama() if own is None else tiny_moe(tmp_path, **own).model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_have_every_gradient_where_no_token_ran(model, dtype):
    """FSDP and ZeRO exchange gradients piece by piece: a rank without one would wait for the others, or they for it. DeepSpeed casts all weights."""
    own = Depth(skip=ROUTE | {"gate": 0.05}).model_dump(mode="json")
    depth.prepare(model, own, lambda rows: [])
    trainee = Trainee(model.to(dtype).train(), Weights())  # a later stage: the threshold decides
    for layer in skip.routed(model).values():
        layer.select, layer.least = None, math.inf
    rows = batch()
    alone, _ = trainee(rows)
    alone.backward()
    ffn = [
        p for layer in model.model.layers for module in skip.ffn_modules(layer) for p in module.parameters()
    ]
    gates = [p for router in skip.routers(model) for p in router.parameters()]
    assert all(p.grad is None for p in (*ffn, *gates)), "in one process nothing is in the way of that"
    model.zero_grad()
    for layer in skip.routed(model).values():
        layer.every_gradient = True
    together, _ = trainee(rows)
    together.backward()
    assert torch.equal(alone, together)
    assert all(p.grad is not None and not p.grad.any() for p in (*ffn, *gates))


def test_zero_3_is_refused():
    with pytest.raises(InputError, match=r"ZeRO-3 gathers a layer's weights .*depth\.skip"):
        zero.check_skipping(3)
    zero.check_skipping(2)


def test_annealing_and_budgets_by_hand():
    assert [steer.annealed(t, 0.9, 1000) for t in (0, 500, 1000, 5000)] == pytest.approx(
        [1.0, 0.95, 0.9, 0.9]
    )
    assert steer.annealed(0, 0.7, 0) == 0.7
    assert steer.rescaled([0.8, 0.4, 0.6], 0.45) == pytest.approx([0.6, 0.3, 0.45])
    # 0.9 of 3 layers is 2.7; in proportion the first would be 1.35, so it gets 1 and the others share 1.7 as 0.6 : 0.6
    assert steer.rescaled([1.2, 0.6, 0.6], 0.9) == pytest.approx([1.0, 0.85, 0.85])
    assert steer.rescaled([0.0, 0.0], 0.3) == pytest.approx([0.3, 0.3])
    assert steer.rescaled([1.0, 0.5], 1.0) == pytest.approx([1.0, 1.0])
    trainee = made(capacity=0.5, anneal=4)
    own = trainee.depth
    assert own.budgets() == [1.0, 1.0, 1.0]
    own.begin_step(1)
    assert own.target == pytest.approx(0.875)
    counts = torch.tensor([[10.0, 10, 9, 10], [8, 10, 9, 10], [9, 10, 9, 10]])
    own.after_step(counts, 1)  # shares 1.0, 0.8, 0.9 of mean 0.9; the next step's mean is 0.75
    assert own.budgets() == pytest.approx([0.75 / 0.9, 0.8 * 0.75 / 0.9, 0.75], abs=1e-8)
    rates = own.factors(1e-3)
    assert rates == pytest.approx(
        {"0": 1 + 0.0833333, "1": 1 + 2 / 3 - 0.75, "2": 1.0, "router": 1.0}, abs=1e-5
    )
    own.settings = own.settings | {"momentum": 0.5, "router_lr": 1e-2}
    own.set_budgets([1.0, 0.5, 0.75])
    own.after_step(counts, 10)  # mixed 1.0, 0.65, 0.825; mean 0.825, wanted 0.5
    assert own.budgets() == pytest.approx([0.5 / 0.825, 0.65 * 0.5 / 0.825, 0.5], abs=1e-8)
    assert own.factors(1e-3)["router"] == pytest.approx(10.0)


def test_before_the_budget_falls_the_loss_is_the_parents(model):
    item = batch(padded=True)
    plain, _ = Trainee(copy.deepcopy(model).train(), Weights(balance=0.1))(item)
    trainee = made(model, {"balance": 0.1}, anneal=100, loss=0.0)
    loss, statistics = trainee(item)
    assert torch.allclose(loss, plain, rtol=1e-6)
    assert statistics["depth_L4"][:, 2].tolist() == [70.0] * 3, "every token that is not padding ran"
    assert statistics["depth_L4"][:, 0].tolist() == [70.0] * 3
    assert float(statistics["depth_loss"]) == pytest.approx(0.6931472, rel=1e-5)


def test_top_k_labels_and_loss_by_hand():
    """One layer at a time against the definition, on routers that differ from token to token."""
    trainee = made(label_share=1.0)
    with torch.no_grad():
        for i, router in enumerate(skip.routers(trainee.model)):
            router.weight.copy_(torch.randn(1, 48, generator=torch.Generator().manual_seed(i)) / 4)
    trainee.depth.set_budgets([0.25, 0.5, 0.75])
    item = batch(padded=True)
    valid = item.mask_BT.flatten().bool()
    seen: dict[int, torch.Tensor] = {}
    inner = trainee.depth._select

    def spy(own, logits_T):
        kept = inner(own, logits_T)
        seen[len(seen)] = (logits_T, kept)
        return kept

    for own in trainee.depth.skips:
        own.select = spy
    mus = {}
    for i, layer in enumerate(trainee.model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: mus.__setitem__(i, trainee.depth.skips[i].mu_T.clone()))
    _, statistics = trainee(item)
    for i, budget in enumerate([0.25, 0.5, 0.75]):
        logits, kept = seen[i]
        best = logits[valid].sort(descending=True).values[: -int(-budget * 70 // 1)]
        assert sorted(logits[kept].tolist(), reverse=True) == best.tolist()
        assert not kept[~valid].any()
    mu = torch.stack([mus[i][valid] for i in range(3)])
    labels = (mu <= mu.flatten().sort().values[104]).float()  # ceil(0.5 * 210) = 105
    logits = torch.stack([seen[i][0][valid] for i in range(3)])
    expected = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).mean()
    assert float(statistics["depth_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert statistics["depth_L4"][:, 0].tolist() == labels.sum(dim=1).tolist()
    assert statistics["depth_L4"][:, 1].tolist() == [70.0] * 3
    assert float(statistics["depth_agreement"]) == pytest.approx(
        float(((logits >= 0) == labels.bool()).float().mean())
    )


def test_gradients_reach_routers_and_only_tokens_that_run_reach_ffns(model):
    trainee = made(model, {"balance": 0.01}, loss=0.0)
    item = batch()
    trainee(item)[0].backward()
    for router in skip.routers(model):
        assert router.weight.grad.abs().sum() > 0, "through the gate, without the routers' own loss"
    model.zero_grad()
    alone = made(tiny_llama(), train="routers", gate=0.0)
    loss, _ = alone(item)
    loss.backward()
    moved = {
        name for name, p in alone.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert moved == {f"model.layers.{i}.depth_router.{part}" for i in range(3) for part in ("weight", "bias")}
    assert {name for name, p in alone.model.named_parameters() if p.requires_grad} == moved


def test_without_a_gradient_into_the_model():
    found = {}
    for detach, loss in ((True, 5.0), (False, 5.0), (False, 0.0)):
        trainee = made(detach=detach, loss=loss, gate=0.0)
        with torch.no_grad():
            for router in skip.routers(trainee.model):
                router.weight.fill_(0.1)
        trainee(batch())[0].backward()
        found[detach, loss] = trainee.model.model.layers[0].self_attn.o_proj.weight.grad.clone()
    assert torch.equal(found[True, 5.0], found[False, 0.0]), "the routers' loss has no part in it"
    assert not torch.allclose(found[True, 5.0], found[False, 5.0])


def test_a_later_stage_measures_the_routers_that_it_trains(tmp_path):
    """Without steering, as pre-training or distillation of a skipping model; nothing measured is no share of 0."""
    model = made().model
    for item in skip.layers(model).values():
        item.share, item.select = 1.0, None
    trainee = Trainee(model, Weights())
    assert trainee.depth is None
    engine = build(trainee, settings())
    assert validate(validated(trainee, tmp_path), engine)["valid/ran"] == 1.0
    with torch.no_grad():
        for router in skip.routers(model):
            router.bias.fill_(-5.0)
    assert validate(validated(trainee, tmp_path), engine)["valid/ran"] == 0.0
    assert set(depth.shares(model).values()) == {0.0}
    assert "valid/ran" not in validate(validated(trainee, tmp_path, types.SimpleNamespace(sizes={})), engine)
    assert depth.shares(model) == {}
    with pytest.raises(InputError, match="nobody has measured"):
        depth.fold.fold(model)


def test_inserted_layers_only():
    trainee = made(train="inserted", expand={"every": 1})
    trained = {
        name.split(".")[2]
        for name, p in trainee.model.named_parameters()
        if p.requires_grad and "router" not in name
    }
    assert trained == {"1", "3", "5"}


def test_padding_and_labelled_share_change_what_they_should(model):
    trainee = made(model, {"balance": 0.1}, loss=1.0)
    plain = batch(rows=2)
    longer = batch(rows=2)
    longer = type(plain)(
        torch.cat([plain.ids_BT, torch.zeros(2, 5, dtype=torch.long)], 1),
        torch.cat([plain.targets_BT, torch.full((2, 5), -100)], 1),
        torch.cat([torch.ones(2, 20), torch.zeros(2, 5)], 1).long(),
        plain.domains, plain.step_targets, 1.0,
    )  # fmt: skip
    with torch.no_grad():
        for router in skip.routers(model):
            router.weight.normal_(generator=torch.Generator().manual_seed(3))
    one, two = trainee(plain), trainee(longer)
    assert torch.allclose(one[0], two[0], rtol=1e-4)
    assert torch.equal(one[1]["depth_L4"], two[1]["depth_L4"])
    trainee.depth.settings = trainee.depth.settings | {"label_share": 0.25}
    _, few = trainee(plain)
    assert few["depth_L4"][:, 1].tolist() == [10.0] * 3
    assert torch.equal(few["depth_L4"][:, 2], one[1]["depth_L4"][:, 2])
    assert torch.equal(few["depth_loss"], trainee(plain)[1]["depth_loss"]), (
        "the same seed labels the same tokens"
    )


def test_labels_do_not_touch_the_model(model):
    """The FFN of skipped tokens runs for labels: neither loss nor gradient nor the experts' load see it."""
    with_labels = made(model, {"balance": 0.1}, loss=0.0)
    with torch.no_grad():
        for router in skip.routers(model):
            router.weight.normal_(generator=torch.Generator().manual_seed(3))
    item = batch()
    loss, statistics = with_labels(item)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with_labels.depth.settings = with_labels.depth.settings | {"labels": "self"}
    again, other = with_labels(item)
    again.backward()
    assert torch.equal(loss, again)
    assert all(torch.equal(grads[name], p.grad) for name, p in model.named_parameters())
    if "load_LE" in statistics:
        assert torch.equal(statistics["load_LE"], other["load_LE"])
        slots = statistics["load_LE"].sum(dim=1) / with_labels.policy.parts[0].router.top_k
        rows = [part.layer for part in with_labels.policy.parts]
        assert torch.equal(slots, statistics["depth_L4"][rows, 2]), "experts serve the tokens that run"


def test_recomputed_activations_give_the_same_gradient(model):
    trainee = made(model, {"balance": 0.1})
    with torch.no_grad():
        for router in skip.routers(model):
            router.weight.normal_(generator=torch.Generator().manual_seed(3))
    item = batch(padded=True)
    trainee(item)[0].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trainee(item)[0].backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, expected[name], atol=1e-6), name


def test_every_token_past_every_ffn_in_evaluation(model):
    trainee = made(model, {"balance": 0.1}).eval()
    with torch.no_grad():
        for router in skip.routers(model):
            router.bias.fill_(-50.0)
        loss, statistics = trainee(batch())
    assert torch.isfinite(loss)
    assert statistics["depth_L4"][:, 2].sum() == 0
    if "load_LE" in statistics:
        assert statistics["load_LE"].shape[0] == len(trainee.policy.parts)
        assert statistics["load_LE"].sum() == 0


def test_learning_rates_by_layer():
    trainee = made(router_lr=3e-2)
    engine = build(trainee, settings(lr=1e-2, min_lr=1.0))
    trainee.depth.set_budgets([0.2, 0.5, 0.8])
    engine.set_rates(engine.optimizer, 3)
    rates = {id(p): group["lr"] for group in engine.optimizer.param_groups for p in group["params"]}
    layers = trainee.model.model.layers
    for layer, expected in zip(layers, (0.7e-2, 1e-2, 1.3e-2), strict=True):
        assert rates[id(layer.mlp.up_proj.weight)] == pytest.approx(expected)
        assert rates[id(layer.input_layernorm.weight)] == pytest.approx(expected)
        assert rates[id(layer.depth_router.weight)] == pytest.approx(3e-2)
    assert rates[id(trainee.model.model.norm.weight)] == pytest.approx(1e-2)
    even = made(layer_rates=False)
    engine = build(even, settings(lr=1e-2, min_lr=1.0))
    even.depth.set_budgets([0.2, 0.5, 0.8])
    engine.set_rates(engine.optimizer, 3)
    assert {group["lr"] for group in engine.optimizer.param_groups} == {1e-2}


def test_routers_learn_the_labels():
    trainee = made(capacity=0.5, anneal=0, router_lr=5e-2, label_share=1.0)
    engine = build(trainee, settings(lr=1e-4))
    agreement = []
    for step in range(40):
        trainee.depth.begin_step(step)
        _, statistics = engine.forward_backward(batch(rows=4, seed=1), last=True)
        engine.step(step)
        trainee.depth.after_step(statistics["depth_L4"], step)
        agreement.append(float(statistics["depth_agreement"]))
    assert agreement[0] < 0.6
    assert agreement[-1] > 0.8, agreement


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give expand, skip or both"),
        ({"train": "routers", "expand": {}}, "train routers needs skip"),
        ({"train": "inserted", "skip": {}}, "train inserted needs expand"),
        ({"expand": {}, "skip": {"method": "static"}}, "give one of the two"),
        ({"expand": {"every": 2, "after": [1]}}, "in two ways"),
        ({"expand": {"every": None}}, "give every or after"),
        ({"skip": {"capacity": 0.0}}, "capacity"),
        ({"skip": {"labels": "cosine"}}, "labels"),
    ],
)
def test_wrong_configurations_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Tune(depth=changes)


def test_trained_as_it_infers():
    """selection: threshold; with nobody above it the best token still runs, so that the FFN gets a gradient."""
    trainee = made(selection="threshold")
    with torch.no_grad():
        for i, router in enumerate(skip.routers(trainee.model)):
            router.weight.normal_(generator=torch.Generator().manual_seed(i))
    item = batch(padded=True)
    seen = {}
    for name in ("train", "eval"):
        getattr(trainee, name)()
        trainee(item)
        own = trainee.depth.skips[0]
        seen[name] = own.kept_T & item.mask_BT.flatten().bool()
        assert torch.equal(own.logits_T >= 0, own.kept_T) or name == "train"
    assert torch.equal(seen["train"], seen["eval"])
    assert 0 < int(seen["train"].sum()) < 70
    with torch.no_grad():
        for router in skip.routers(trainee.model):
            router.bias.fill_(-1000.0)
    _, statistics = trainee.train()(item)
    assert statistics["depth_L4"][:, 2].tolist() == [1.0] * 3
