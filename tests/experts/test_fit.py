"""Routers, balance, scales and the refit, on layers with known answers; the stream equals the finished model."""

import math
import weakref
from functools import partial

import pytest
import torch
from test_features import a_layer
from tiny import tiny_llama, tiny_moe, tiny_text

from moesaic.errors import InputError
from moesaic.experts import balance, reconstruct, routers, scale
from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations
from moesaic.experts.routers import contribution
from moesaic.model import families
from moesaic.schema import Experts

OPTIONS = Experts().model_dump(mode="json")


def planted(tokens=600, seed=0):
    """Four experts of 10 neurons; which one works on a token is linear in the layer input."""
    ffn, x, _ = a_layer(tokens=tokens)
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 12, generator=stream)
    kind = x[:, :4].argmax(dim=1)
    h = 0.05 * torch.randn(tokens, 40, generator=stream)
    for expert in range(4):
        h[kind == expert, expert * 10 : expert * 10 + 10] += 1.0
    assignment = Assignment(torch.zeros(0, dtype=torch.long), torch.arange(40).view(4, 10), torch.zeros(40))
    return ffn, Activations(x, h), assignment, kind


@pytest.mark.parametrize(
    "name", [name for name, router in routers.METHODS.items() if router.NEEDS_ACTIVATIONS]
)
def test_fitted_routers_find_the_working_expert(name):
    ffn, batch, assignment, kind = planted()
    halves = [
        Activations(batch.x_TD[:250], batch.h_TF[:250]),
        Activations(batch.x_TD[250:], batch.h_TF[250:]),
    ]
    weights = routers.METHODS[name].fit(ffn, halves, assignment, OPTIONS, 0, 0)
    whole = routers.METHODS[name].fit(ffn, [batch], assignment, OPTIONS, 0, 0)
    assert torch.allclose(weights, whole, atol=1e-4), "the cut into batches must not matter"
    assert float(((batch.x_TD @ weights.T).argmax(dim=1) == kind).float().mean()) > 0.8


def test_contribution_lengths_by_hand():
    ffn, batch, assignment, _ = planted(tokens=30)
    found = contribution.lengths(batch, assignment, contribution.grams(ffn, assignment))
    for expert, neurons in enumerate(assignment.routed_EM):
        exact = (batch.h_TF[:, neurons] @ ffn.down_DF[:, neurons].T).norm(dim=1)
        assert torch.allclose(found[:, expert], exact, rtol=1e-3, atol=1e-4)


def test_routing_by_hand():
    x, router = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    assert scale.weigh(x, router, None, 1, 1.0, "softmax").tolist() == [[1, 0, 0], [0, 0, 1]]
    two = scale.weigh(x, router, None, 2, 2.0, "softmax")
    assert two[0].tolist() == pytest.approx([2 / (1 + 2.718281828**-1), 2 / (1 + 2.718281828), 0.0])
    bias = torch.tensor([-5.0, 0.0, 0.0])
    assert scale.weigh(x, router, bias, 1, 1.0, "softmax")[0].tolist() == [0, 1, 0]
    sigmoid = scale.weigh(x, router, None, 2, 1.0, "sigmoid")
    assert float(sigmoid.sum()) == pytest.approx(2.0)


@pytest.mark.parametrize("own_bias", [True, False])
def test_balance_evens_out_the_load_and_strength_interpolates(own_bias):
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 8, generator=stream) + torch.tensor([2.0] + [0.0] * 7)
    router = torch.randn(6, 8, generator=stream) * 0.5
    found = {b: balance.fit(x, router, 2, b, own_bias, "softmax") for b in (0.5, 1.0)}
    assert found[1.0].cv_before > 0.4
    assert found[1.0].cv_after < 0.1
    assert found[1.0].cv_after < found[0.5].cv_after < found[0.5].cv_before
    weights = scale.weigh(x, found[1.0].router_ED, found[1.0].bias_E, 2, 1.0, "softmax")
    load = (weights > 0).float().sum(0)
    assert float(load.std(unbiased=False) / load.mean()) == pytest.approx(found[1.0].cv_after, abs=1e-3)


def weighing(router, per_token=2):
    return partial(
        scale.weigh,
        router_ED=router,
        bias_E=None,
        per_token=per_token,
        factor=float(per_token),
        scores="softmax",
    )


def domains(count=3, tokens=1500):
    """Batches of several folds on one random layer, a random split with shared neurons and a random router."""
    ffn, _, _ = a_layer()
    stream = torch.Generator().manual_seed(4)
    batches = []
    for fold in range(count):
        x = torch.randn(tokens, 12, generator=stream) + 0.05 * fold
        batches.append(Activations(x, ffn.hidden(x), fold))
    order = torch.randperm(40, generator=stream)
    assignment = Assignment(order[:8].sort().values, order[8:].view(4, 8), torch.zeros(40))
    return ffn, batches, assignment, torch.randn(4, 12, generator=stream)


def test_refit_solves_the_ridge_problem_from_sums():
    ffn, batches, assignment, router = domains()
    down = ffn.down_DF.T[reconstruct.columns(assignment)]
    folds = reconstruct.gather(ffn, batches, assignment, weighing(router), down)
    found = reconstruct.refit(folds, 1e-5, 0.1)
    a = torch.cat([reconstruct.running(b, assignment, weighing(router)(b.x_TD)) for b in batches])
    target = torch.cat([b.h_TF @ ffn.down_DF.T for b in batches])
    exact = torch.linalg.lstsq(a.double(), target.double()).solution.float()
    assert torch.allclose(a @ (down + found.change_PD), a @ exact, atol=2e-2 * float(target.abs().max()))
    # errors of left-out folds are exact, though no token is looked at twice
    rest = [folds[1], folds[2]]
    change = reconstruct.solve(sum(f.gram_PP for f in rest), sum(f.product_PD for f in rest), 0.3)
    a0 = reconstruct.running(batches[0], assignment, weighing(router)(batches[0].x_TD))
    target0 = batches[0].h_TF @ ffn.down_DF.T
    ratio = float((a0 @ (down + change) - target0).square().sum() / (a0 @ down - target0).square().sum())
    assert reconstruct.left_out(folds[0], change) == pytest.approx(ratio, rel=1e-3)


def test_refit_that_harms_an_unseen_domain_is_refused():
    """The folds contradict each other: what fits two of them is wrong for the third, at every strength worth having."""
    size, width = 6, 3
    gram = torch.eye(size)
    product = torch.ones(size, width)
    folds = {
        fold: reconstruct.Normal(gram, sign * product, 20.0, 40.0) for fold, sign in enumerate((1.0, -1.0))
    }
    found = reconstruct.refit(folds, None, 0.1)
    assert found.change_PD is None
    agreeing = {fold: reconstruct.Normal(gram, product, 20.0, 40.0) for fold in range(2)}
    assert reconstruct.refit(agreeing, None, 0.1).change_PD is not None


def test_statistics_that_float32_cannot_solve():
    """Two columns that are one: float64 where that is enough, else a word on the key, or a stronger pull."""
    gram, product = torch.ones(2, 2), torch.tensor([[1.0], [1.0]])
    assert reconstruct.solve(gram, product, 1e-9).tolist() == [[pytest.approx(0.5)], [pytest.approx(0.5)]]
    gram[0, 1] = gram[1, 0] = 1.001  # what rounding makes of it
    folds = {fold: reconstruct.Normal(gram, product, 2.0, 2.0) for fold in range(2)}
    with pytest.raises(InputError, match=r"experts\.ridge: 1e-05 is too small"):
        reconstruct.refit(folds, 1e-5, 0.1)
    chosen = reconstruct.refit(folds, None, 4e-4)
    assert chosen.ridge > 1e-3
    assert chosen.change_PD is not None
    assert all(math.isfinite(value) for value in chosen.left_out)


def test_strength_is_chosen_by_left_out_error():
    ffn, batches, assignment, router = domains(tokens=60)
    down = ffn.down_DF.T[reconstruct.columns(assignment)]
    folds = reconstruct.gather(ffn, batches, assignment, weighing(router), down)
    chosen = reconstruct.refit(folds, None, 0.1)
    for factor in (1 / 9, 9.0):
        other = reconstruct.refit(folds, chosen.ridge * factor, 0.1)
        assert sum(chosen.left_out) <= sum(other.left_out) + 1e-6


def test_calibrated_scale_is_the_least_squares_factor():
    ffn, batches, assignment, router = domains()
    down = ffn.down_DF.T[reconstruct.columns(assignment)]
    weigh = weighing(router)
    found = scale.calibrate(ffn, batches, assignment, weigh, down)

    def error(factor):
        total = 0.0
        for b in batches:
            a = reconstruct.running(b, assignment, weigh(b.x_TD) * factor)
            total += float((a @ down - b.h_TF @ ffn.down_DF.T).square().sum())
        return total

    assert error(found) < min(error(found * 0.9), error(found * 1.1), error(1.0) + 1e-6)


@pytest.mark.parametrize("family", ["granitemoeshared", "glm4_moe"])
def test_the_stream_is_the_finished_model(tmp_path, family):
    """Held-out errors in the audit are those of the model that was saved, last layer included."""
    text = tiny_text(12)
    made = tiny_moe(
        tmp_path, tiny_llama(), text, split="activation", router="least-squares", reconstruct="least-squares", balance=0.5,
        shared=32, experts=8, family=family, compensate=0.0,
    )  # fmt: skip
    seen = {}
    block = made.model.model.layers[-1]
    block.post_attention_layernorm.register_forward_hook(lambda m, i, o: seen.update(after=i[0], x=o))
    inner = block.mlp if family == "glm4_moe" else None
    held = text.ids_NT[text.fitted :]
    with torch.no_grad():
        if inner is not None:
            inner.register_forward_hook(lambda m, i, o: seen.update(y=o))
        else:
            block.block_sparse_moe.register_forward_hook(lambda m, i, o: seen.update(routed=o))
            block.shared_mlp.register_forward_hook(lambda m, i, o: seen.update(shared=o))
        made.model(input_ids=held)
        output = seen["y"] if inner is not None else seen["routed"] + seen["shared"]
        target = tiny_llama().model.layers[-1].mlp(seen["x"])
    # errors count relative to the residual stream
    rms = (seen["after"] + target).square().mean(dim=-1, keepdim=True).sqrt()
    error = float(((output - target) / rms).norm() / (target / rms).norm())
    assert error == pytest.approx(made.layers[-1]["error"], abs=2e-4)
    assert made.layers[-1]["error"] <= made.layers[-1]["error_before_refit"]
    assert made.layers[-1]["load_cv_balanced"] < made.layers[-1]["load_cv_unbalanced"]
    assert families.of(made.model).name == family


@pytest.mark.parametrize("factor", ["none", "calibrated"])
def test_neurons_drawn_anew_are_those_that_run(tmp_path, factor):
    """Split `drop`: the activations of its fresh neurons are their own, not the parent's, in errors and in what the next layer sees."""
    text = tiny_text(12)
    made = tiny_moe(
        tmp_path, tiny_llama(), text, split="drop", router="random", reconstruct="none", scale=factor,
        experts=4, per_token=2, compensate=0.0,
    )  # fmt: skip
    seen = {}
    block = made.model.model.layers[-1]
    block.post_attention_layernorm.register_forward_hook(lambda m, i, o: seen.update(after=i[0], x=o))
    block.mlp.register_forward_hook(lambda m, i, o: seen.update(y=o))
    with torch.no_grad():
        made.model(input_ids=text.ids_NT[text.fitted :])
        target = tiny_llama().model.layers[-1].mlp(seen["x"])
    rms = (seen["after"] + target).square().mean(dim=-1, keepdim=True).sqrt()
    error = float(((seen["y"] - target) / rms).norm() / (target / rms).norm())
    assert error == pytest.approx(made.layers[-1]["error"], abs=2e-4)


def test_equal_weights_and_a_balanced_choice_go_together(tmp_path):
    """scale: unit shortens the router; the bias of glm4_moe must fit the short one, or it alone would choose."""
    text = tiny_text(12)
    found = {}
    for factor in ("none", "unit"):
        (tmp_path / factor).mkdir()
        made = tiny_moe(
            tmp_path / factor, tiny_llama(), text, split="activation", router="least-squares", balance=1.0, scale=factor, shared=32,
            experts=8, family="glm4_moe",
        )  # fmt: skip
        loads = []
        for part in families.parts(made.model):
            part.router.register_forward_hook(
                lambda m, i, o, loads=loads: loads.append(torch.bincount(o[2].flatten(), minlength=8).float())
            )
        with torch.no_grad():
            made.model(input_ids=text.ids_NT[: text.fitted])
        found[factor] = float(torch.stack([load.std() / load.mean() for load in loads]).mean())
    assert found["unit"] < 1.5 * found["none"] + 0.1, found


@pytest.mark.parametrize("settings", [{"router": "centroids"}, {"router": "least-squares", "balance": 0.5}])
def test_one_expert_needs_no_choice(tmp_path, settings):
    made = tiny_moe(tmp_path, shared=32, experts=1, per_token=1, **settings)
    assert all(torch.isfinite(p).all() for p in made.model.parameters())


def test_fitted_routers_hold_no_more_than_a_batch():
    ffn, batch, assignment, _ = planted()
    alive = []

    class Batches:
        def __iter__(self):
            for start in range(0, 600, 50):
                one = Activations(
                    batch.x_TD[start : start + 50].clone(), batch.h_TF[start : start + 50].clone()
                )
                alive.append(weakref.ref(one))
                assert sum(ref() is not None for ref in alive) <= 2
                yield one

    for router in routers.METHODS.values():
        if router.NEEDS_ACTIVATIONS:
            router.fit(ffn, Batches(), assignment, OPTIONS, 0, 0)
