"""Splits, routers and the refit on tiny layers with known answers."""

import pytest
import torch

from moesaic.errors import InputError
from moesaic.experts import calibrate, convert, methods, reconstruct
from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations, Ffn


def layer(seed=0, tokens=400, hidden=24, width=64):
    generator = torch.Generator().manual_seed(seed)
    ffn = Ffn(
        *(
            torch.randn(*shape, generator=generator) / hidden**0.5
            for shape in ((width, hidden), (width, hidden), (hidden, width))
        )
    )
    x = torch.randn(tokens, hidden, generator=generator)
    return Activations(ffn, x, ffn.hidden(x))


@pytest.mark.parametrize("name", methods.SPLITS)
@pytest.mark.parametrize(("shared", "experts"), [(0, 4), (16, 6), (32, 1), (60, 4)])
def test_every_neuron_is_used_once_and_seeds_matter(name, shared, experts):
    activations = layer()
    split = methods.SPLITS[name].split
    one = split(activations, 64, shared, experts, 1, 0)
    one.check(64)
    assert one.shared_S.numel() == shared
    assert one.routed_EM.shape == (experts, (64 - shared) // experts)
    assert torch.equal(one.routed_EM, split(activations, 64, shared, experts, 1, 0).routed_EM)
    if name == "random" and experts > 1:
        assert not torch.equal(one.routed_EM, split(activations, 64, shared, experts, 2, 0).routed_EM)


def test_activation_split_finds_planted_groups():
    """Neurons 0-7 always fire strongly; the others fire in two groups on disjoint tokens."""
    torch.manual_seed(0)
    tokens, width = 300, 40
    h = torch.zeros(tokens, width)
    h[:, :8] = 5 + torch.rand(tokens, 8)
    first = torch.arange(tokens) % 2 == 0
    left, right = torch.arange(8, 40)[::2], torch.arange(8, 40)[1::2]
    h[first.nonzero(), left] = 1 + torch.rand(int(first.sum()), 16)
    h[(~first).nonzero(), right] = 1 + torch.rand(int((~first).sum()), 16)
    ffn = Ffn(torch.zeros(width, 4), torch.zeros(width, 4), torch.ones(4, width))
    found = methods.SPLITS["activation"].split(Activations(ffn, torch.zeros(tokens, 4), h), width, 8, 2, 0, 0)
    assert found.shared_S.tolist() == list(range(8))
    assert {tuple(row.tolist()) for row in found.routed_EM} == {tuple(left.tolist()), tuple(right.tolist())}


def test_least_squares_router_beats_random_at_finding_the_strongest_expert():
    activations = layer(tokens=2000)
    assignment = methods.SPLITS["activation"].split(activations, 64, 0, 4, 0, 0)
    truth = methods.ROUTERS["least-squares"].contributions(activations, assignment)
    truth = (truth / truth.mean(dim=0)).argmax(dim=1)
    hits = {}
    for name, router in methods.ROUTERS.items():
        weights = router.fit(activations, assignment, 24, 0.1, 0, 0)
        hits[name] = float(((activations.x_TD @ weights.T).argmax(dim=1) == truth).float().mean())
    # |E(x)| is an even function of most inputs, so a linear router sees only part of it; chance is 0.25
    assert hits["least-squares"] > hits["random"] + 0.05


def test_refit_solves_the_ridge_problem():
    activations = layer(tokens=500)
    assignment = methods.SPLITS["random"].split(None, 64, 16, 4, 0, 0)
    router = methods.ROUTERS["least-squares"].fit(activations, assignment, 24, 0.1, 0, 0)
    a = reconstruct.masked(activations, assignment, reconstruct.route(activations.x_TD, router, 2, 2.0))
    target = activations.h_TF @ activations.ffn.down_DF.T
    down = reconstruct.refit(a, target, activations.ffn.down_DF, 1e-6)
    exact = torch.linalg.lstsq(a.double(), target.double()).solution.T.float()
    assert torch.allclose(a @ down.T, a @ exact.T, atol=1e-2)
    before = reconstruct.relative_error(a @ activations.ffn.down_DF.T, target)
    assert reconstruct.relative_error(a @ down.T, target) < before


def test_routing_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    routed = reconstruct.route(x, torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), 1, 1.0)
    assert routed.weights_TE.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert routed.load_E.tolist() == [0.5, 0.0, 0.5]


def test_calibrated_stream_equals_the_converted_model(llama, experts_settings):
    """The hidden states on which layers are fitted are those of the finished model: refit error of the last layer agrees."""
    settings = experts_settings | {
        "reconstruct": "least-squares",
        "split": "activation",
        "router": "least-squares",
    }
    ids = torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(1))
    seen = {}
    layers = calibrate.construct_layers(
        llama, lambda: iter([ids]), 1, settings, convert.scale_factor(settings), 0
    )
    model = convert.build(llama, layers, settings, refitted=True)
    handle = model.model.layers[-1].post_attention_layernorm.register_forward_hook(
        lambda m, i, o: seen.update(x=o)
    )
    model(input_ids=ids)
    handle.remove()
    ffn = calibrate.ffns(llama)[-1]
    x = seen["x"].flatten(0, 1)
    routed = reconstruct.route(x, layers[-1].router_ED, 2, convert.scale_factor(settings))
    a = reconstruct.masked(Activations(ffn, x, ffn.hidden(x)), layers[-1].assignment, routed)
    error = reconstruct.relative_error(a @ layers[-1].down_DF.T, ffn.hidden(x) @ ffn.down_DF.T)
    assert error == pytest.approx(layers[-1].audit["error"], abs=1e-4)


@pytest.mark.parametrize(("shared", "experts"), [(0, 7), (100, 4), (33, 4)])
def test_sizes_that_do_not_divide_are_refused(shared, experts):
    with pytest.raises(InputError, match=r"experts\.(experts|shared)"):
        convert.neurons_per_expert(96, {"shared": shared, "experts": experts})


def test_assignment_check_catches_errors():
    with pytest.raises(AssertionError, match="twice"):
        Assignment(torch.tensor([0]), torch.tensor([[0], [1]]), torch.zeros(3)).check(3)
