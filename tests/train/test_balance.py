"""Balancing: gradients that push the right way, the load estimate against simulation, exact bookkeeping of what is dropped."""

import copy
import dataclasses

import pytest
import torch
from test_objectives import batch
from tiny import tiny_moe

from moesaic.errors import InputError
from moesaic.model import families
from moesaic.schema.training import RouterTraining
from moesaic.train import balance
from moesaic.train.balance import importance_load
from moesaic.train.balance.base import Decision
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.policy import DEFAULTS


def trainee(model, weight=0.0, **router):
    return Trainee(model, Weights(balance=weight, router=DEFAULTS | router))


def decision(logits_TE, per_token=2, scores="softmax", **more):
    index = logits_TE.topk(per_token, dim=1).indices
    return Decision(logits_TE, index, logits_TE.gather(1, index).softmax(dim=1), scores, **more)


@pytest.mark.parametrize("method", ["switch", "importance-load"])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_losses_push_against_skew(method, scores):
    """Smallest when even, and a gradient that lowers the busy expert's logit (LLaMA-MoE v2's has none)."""
    logits = (torch.tensor([[3.0, 1.0, 0.0, 0.5]] * 10)).requires_grad_(True)
    value = balance.METHODS[method](decision(logits, scores=scores))
    value.backward()
    gradient = logits.grad.sum(0)
    assert gradient.abs().max() > 1e-4
    assert gradient[0] > 0
    assert gradient[2] < 0, "the expert that nobody chose is pulled in"
    even = torch.eye(4).repeat(4, 1) * 2 + torch.eye(4).roll(1, 1).repeat(4, 1)
    balanced = float(balance.METHODS[method](decision(even, scores=scores)))
    assert balanced < float(value.detach())
    assert balanced == pytest.approx({"switch": 1.0, "importance-load": 0.0}[method], abs=1e-6)


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    clean = torch.randn(12, 5, dtype=torch.float64)
    sigma = torch.rand(12, 5, dtype=torch.float64) + 0.5
    noise = torch.randn(12, 5, dtype=torch.float64)
    index = (clean + sigma * noise).topk(2, dim=1).indices

    def value(clean, sigma):
        noisy = clean + sigma * noise
        weight = noisy.gather(1, index).softmax(dim=1)
        return importance_load.loss(Decision(clean, index, weight, "softmax", noisy, sigma))

    assert torch.autograd.gradcheck(value, (clean.requires_grad_(True), sigma.requires_grad_(True)))


def test_expected_load_is_what_redrawn_noise_gives():
    """P(expert e is chosen if only its noise is drawn anew), against 4000 draws."""
    stream = torch.Generator().manual_seed(0)
    clean, sigma = torch.randn(6, 5, generator=stream), torch.rand(6, 5, generator=stream) + 0.3
    noisy = clean + sigma * torch.randn(6, 5, generator=stream)
    item = Decision(clean, noisy.topk(2, dim=1).indices, torch.zeros(6, 2), "softmax", noisy, sigma)
    counted = torch.zeros(5)
    draws = 4000
    for expert in range(5):
        redrawn = noisy.repeat(draws, 1, 1)
        redrawn[:, :, expert] = clean[:, expert] + sigma[:, expert] * torch.randn(draws, 6, generator=stream)
        counted[expert] = (redrawn.topk(2, dim=2).indices == expert).any(dim=2).float().mean(dim=0).sum()
    assert torch.allclose(importance_load.expected_load(item), counted, atol=0.06)
    # LLaMA-MoE's test compares the noise alone with the threshold and takes the wrong branch
    top = noisy.topk(3, dim=1).values
    wrong = torch.where((noisy - clean) > top[:, -1:], top[:, -1:], top[:, -2:-1])
    normal = torch.distributions.Normal(0.0, 1.0)
    assert (normal.cdf((clean - wrong) / sigma).sum(dim=0) - counted).abs().max() > 0.3


def test_expected_load_knows_the_bias_of_the_choice():
    """Sigmoid scores and a bias: against 4000 draws of each expert's noise; and a bias that undoes a skew leaves no loss."""
    stream = torch.Generator().manual_seed(0)
    clean, sigma = torch.randn(6, 5, generator=stream), torch.rand(6, 5, generator=stream) + 0.3
    bias = torch.tensor([0.3, -0.2, 0.0, 0.1, -0.4])
    noisy = clean + sigma * torch.randn(6, 5, generator=stream)
    index = (noisy.sigmoid() + bias).topk(2, dim=1).indices
    item = Decision(clean, index, torch.zeros(6, 2), "sigmoid", noisy, sigma, bias)
    counted = torch.zeros(5)
    draws = 4000
    for expert in range(5):
        redrawn = noisy.repeat(draws, 1, 1)
        redrawn[:, :, expert] = clean[:, expert] + sigma[:, expert] * torch.randn(draws, 6, generator=stream)
        chosen = (redrawn.sigmoid() + bias).topk(2, dim=2).indices
        counted[expert] = (chosen == expert).any(dim=2).float().mean(dim=0).sum()
    assert torch.allclose(importance_load.expected_load(item), counted, atol=0.06)
    blind = importance_load.expected_load(dataclasses.replace(item, bias_E=None))
    assert (blind - counted).abs().max() > 0.5


@pytest.mark.parametrize("per_token", [1, 2])
def test_load_without_noise_is_smooth_and_near_the_counts(per_token, monkeypatch):
    logits = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * 7
    logits[:, 5] -= 9  # hardly ever chosen
    item = decision(logits.requires_grad_(True), per_token)
    load = importance_load.expected_load(item)
    assert torch.allclose(load, item.load_E, atol=12)
    assert torch.allclose(importance_load.expected_load(decision(logits * 1e3, per_token)), load, atol=1e-2)
    load[5].backward()
    assert float(logits.grad[:, 5].sum()) > 0.1, "a pull even with one expert per token"
    monkeypatch.setattr(importance_load, "RELATIVE_SIGMA", 1e-4)
    assert torch.allclose(importance_load.expected_load(item), item.load_E, atol=0.1)


def test_noise_repeats_with_its_seed_and_is_off_in_evaluation(tmp_path):
    found = trainee(tiny_moe(tmp_path, shared=32).model, 0.01, noise="learned", balance="importance-load")
    item = batch()
    found.train()
    one, again = found(item)[0], found(item)[0]
    other = found(dataclasses.replace(item, seed=1))[0]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    one.backward()
    assert found.policy.noise_LED.grad.abs().max() > 0
    found.eval()
    assert torch.equal(found(item)[0], found(dataclasses.replace(item, seed=1))[0])


def test_capacity_drops_the_lightest_slots_and_counts_them(tmp_path):
    model = tiny_moe(tmp_path, shared=32).model
    found = trainee(model, capacity=1.0).train()
    with torch.no_grad():
        for part in found.policy.parts:
            part.router.weight.mul_(0.1)
            part.router.weight[0] += torch.randn(48) * 3  # expert 0 gets nearly all or nothing of each token
    with families.Routing(model) as routing:
        _, statistics = found(batch())
    dropped, slots = 0, 80 * 2
    for layer in range(3):
        capacity = -(-slots // 4)
        load = torch.bincount(routing.indices[layer].flatten(), minlength=4)
        dropped += int((load - capacity).clamp_min(0).sum())
        kept = routing.weights[layer].gather(1, (routing.indices[layer] == 0).int().argmax(1, keepdim=True))
        zero = (routing.weights[layer] == 0) & (routing.indices[layer] == 0)
        assert int(zero.sum()) == max(0, int(load[0]) - capacity)
        del kept
    assert float(statistics["dropped"]) == dropped > 0
    found.eval()
    assert float(found(batch())[1]["dropped"]) == 0


def test_a_repeated_forward_pass_leaves_the_decisions_alone(tmp_path):
    """Gradient checkpointing runs the layers again in the backward pass: a decision kept of that would hold its whole graph until the next step."""
    found = trainee(tiny_moe(tmp_path, shared=32).model, 0.01, capacity=0.5)
    found.train()
    found.model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    for part in found.policy.parts:
        part.router.register_forward_hook(lambda *_: calls.append(1))
    loss, statistics = found(batch())
    before, passes = dict(found.policy.decisions), len(calls)
    loss.backward()
    assert len(calls) == 2 * passes
    assert all(found.policy.decisions[layer] is decision for layer, decision in before.items())
    assert found.policy.dropped == statistics["dropped"] > 0


def test_padding_takes_no_room(tmp_path):
    found = trainee(tiny_moe(tmp_path, shared=32).model, capacity=0.5).train()
    padded = batch(padded=True)
    before = found(padded)[0]
    padded.ids_BT[0, 10:] = 7  # what stands in the padding must not matter
    assert torch.allclose(found(padded)[0], before, rtol=1e-6)


def test_learned_scale_is_trained_and_folds_exactly(tmp_path):
    for family, shared in (("granitemoeshared", 32), ("glm4_moe", 32), ("mixtral", 0)):
        folder = tmp_path / family
        folder.mkdir()
        model = tiny_moe(folder, shared=shared, experts=8 if shared else 4, family=family).model
        found = trainee(model, learn_scale=True).train()
        found(batch())[0].backward()
        assert found.policy.scale_L.grad.abs().min() > 0
        with torch.no_grad():
            found.policy.scale_L.copy_(torch.tensor([0.5, 1.7, 1.1]))
        scaled = found(batch())[0]
        found.policy.fold(model, dict(model.named_parameters()) | {"policy.scale_L": found.policy.scale_L})
        assert torch.allclose(found(batch())[0], scaled, rtol=1e-5)
        assert torch.allclose(trainee(model)(batch())[0], scaled, rtol=1e-5), (
            "the model alone computes the same"
        )


def test_the_largest_seed_draws_noise_too(tmp_path):
    model = tiny_moe(tmp_path, shared=32).model
    found = trainee(model, noise="learned", expert_dropout=0.1).train()
    largest = ((2**32 - 1) << 32) + 10**6
    first, second = (
        float(found(dataclasses.replace(batch(), seed=seed))[0].detach()) for seed in (largest, largest + 1)
    )
    assert first != second


def test_learned_scale_is_folded_into_the_engines_copies(tmp_path):
    """DeepSpeed's ZeRO-1 and 2 train another copy of the weights than the modules hold."""
    model = tiny_moe(tmp_path, shared=32, experts=8, family="glm4_moe").model
    found = trainee(model, learn_scale=True)
    with torch.no_grad():
        found.policy.scale_L.copy_(torch.tensor([0.5, 1.7, 1.1]))
    scaled = found(batch())[0]
    own = dict(model.named_parameters()) | {"policy.scale_L": found.policy.scale_L}
    copies = {name: tensor.detach().clone() for name, tensor in own.items()}
    found.policy.fold(model, copies)
    assert torch.equal(found(batch())[0], scaled), "the modules are left alone"
    model.load_state_dict({name: t for name, t in copies.items() if name != "policy.scale_L"}, strict=False)
    with torch.no_grad():
        found.policy.scale_L.copy_(copies["policy.scale_L"])  # its hooks are still on the model
    assert torch.allclose(trainee(model)(batch())[0], scaled, rtol=1e-5)


def test_tanh_gate_starts_as_the_router_is_trained_and_is_never_saved(tmp_path):
    model = tiny_moe(tmp_path, shared=32).model
    with torch.no_grad():
        for part in families.parts(model):
            part.router.weight.mul_(1e-3)  # small logits: tanh is the identity
    linear = trainee(model)(batch())[0]
    found = trainee(model, gate="tanh").train()
    assert torch.allclose(linear, found(batch())[0], rtol=1e-5)
    with torch.no_grad():
        for part in families.parts(model):
            part.router.weight.mul_(3e3)
        found.policy.second_LEE += torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    with families.Routing(model) as routing:
        loss, _ = found(batch())
    x_TD = torch.randn(7, 48)
    router = found.policy.parts[1].router
    logits, weight, index = router(x_TD)
    by_hand = torch.tanh(x_TD @ router.weight.T) @ found.policy.second_LEE[1].T
    assert torch.allclose(logits, by_hand, atol=1e-5)
    assert torch.equal(index, by_hand.topk(2, dim=1).indices)
    assert torch.allclose(weight, by_hand.topk(2, dim=1).values.softmax(dim=1), atol=1e-5)
    loss.backward()
    assert found.policy.second_LEE.grad.abs().amax(dim=(1, 2)).min() > 0
    assert sorted(routing.logits) == [0, 1, 2]
    with pytest.raises(InputError, match=r"router\.gate"):
        found.policy.fold(model, {})


def test_bias_moves_against_the_load_and_only_where_there_is_one(tmp_path):
    (tmp_path / "a").mkdir()
    model = tiny_moe(tmp_path / "a", shared=32, experts=8, family="glm4_moe").model
    found = trainee(model, balance="bias", bias_rate=0.1)
    load = torch.tensor([[8.0, 0, 4, 4, 4, 4, 4, 4]] * 3)
    found.policy.after_step(load)
    bias = next(families.parts(model)).router.e_score_correction_bias
    assert bias.tolist() == pytest.approx([-0.1, 0.1] + [0.0] * 6)
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"experts\.family: glm4_moe"):
        trainee(tiny_moe(tmp_path / "b").model, balance="bias")


@pytest.mark.parametrize(
    ("router", "weight", "family"),
    [
        ({"balance": "switch"}, 0.05, "granitemoeshared"),
        ({"balance": "importance-load"}, 0.05, "granitemoeshared"),
        ({"balance": "importance-load", "noise": "learned"}, 0.05, "granitemoeshared"),
        ({"balance": "bias", "bias_rate": 0.02}, 0.0, "glm4_moe"),
    ],
)
def test_a_skewed_router_is_brought_back(tmp_path, router, weight, family):
    """All tokens go to the same two experts at first; every method spreads them."""
    model = tiny_moe(tmp_path, shared=32, experts=8, family=family).model
    with torch.no_grad():
        for part in families.parts(model):
            # the two rows point along the mean of what the router sees, so that all tokens choose them
            part.router.weight.mul_(0.02)
    found = trainee(model, weight, **router)
    seen = {}
    for layer, part in enumerate(families.parts(model)):
        part.router.register_forward_pre_hook(lambda _m, x, layer=layer: seen.__setitem__(layer, x[0]))
    found(batch())
    with torch.no_grad():
        for layer, part in enumerate(families.parts(model)):
            mean = seen[layer].reshape(-1, 48).mean(0)
            part.router.weight[:2] += 0.5 * mean / mean.square().sum()
    skewed = balance.load_cv(found.eval()(batch())[1]["load_LE"])
    assert float(skewed.mean()) > 1.0
    found.train()
    optimizer = torch.optim.Adam(
        [p for n, p in found.named_parameters() if "router" in n or "gate.weight" in n or "policy" in n], 0.02
    )
    for step in range(60):
        optimizer.zero_grad()
        loss, statistics = found(dataclasses.replace(batch(seed=step % 8), seed=step))
        loss.backward()
        optimizer.step()
        found.policy.after_step(statistics["load_LE"])
    found.eval()
    assert float(balance.load_cv(found(batch(seed=3))[1]["load_LE"]).mean()) < 0.6 * float(skewed.mean())


FAMILIES = ("mixtral", "granitemoeshared", "qwen2_moe", "glm4_moe")


def of(tmp_path, family):
    shared, experts = (0, 4) if family == "mixtral" else (32, 8)
    return tiny_moe(tmp_path, shared=shared, experts=experts, family=family).model


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_routers_stay_and_experts_learn(tmp_path, family):
    model = of(tmp_path, family)
    found = trainee(model, 0.1, frozen=True).train()
    learned = {name for name, p in found.model.named_parameters() if p.requires_grad}
    routers = {id(part.router.weight) for part in families.parts(model)}
    names = {name for name, p in model.named_parameters() if id(p) in routers}
    assert len(names) == 3
    assert not names & learned
    # not by a word in the name: the experts' gate projections are trained
    assert any("gate_up_proj" in name for name in learned)
    loss, _ = found(batch())
    loss.backward()
    assert all(part.router.weight.grad is None for part in families.parts(model))
    assert all(part.experts.gate_up_proj.grad.abs().max() > 0 for part in families.parts(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_expert_dropout_is_seeded_keeps_the_mean_and_is_off_in_evaluation(tmp_path, family):
    model = of(tmp_path, family)
    plain = trainee(copy.deepcopy(model)).train()
    found = trainee(model, expert_dropout=0.3).train()
    inner = [part.experts for part in families.parts(model)]
    seen = []
    experts = inner[1]
    thinned = experts._apply_gate

    def look(gate_up_SF):
        out_SM = thinned(gate_up_SF)
        seen.append((experts.act_fn(gate_up_SF.chunk(2, -1)[0]) * gate_up_SF.chunk(2, -1)[1], out_SM))
        return out_SM

    experts._apply_gate = look
    first = float(found(batch(length=64))[0])
    again = float(found(batch(length=64))[0])
    other = float(found(dataclasses.replace(batch(length=64), seed=9))[0])
    assert first == again != other
    whole_SM, thin_SM = seen[0]
    gone = thin_SM == 0
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(thin_SM[~gone], whole_SM[~gone] / 0.7)
    assert float(plain(batch(length=64))[0]) != first
    with torch.no_grad():
        plain.model.set_experts_implementation("grouped_mm")  # what runs experts that are hooked into
        assert float(found.eval()(batch(length=64))[0]) == float(plain.eval()(batch(length=64))[0])
    assert list(model.state_dict()) == list(plain.model.state_dict()), "nothing of it is saved"


def test_frozen_goes_with_nothing_that_trains_the_router():
    with pytest.raises(ValueError, match="frozen: leave noise"):
        RouterTraining(frozen=True, noise="learned")
