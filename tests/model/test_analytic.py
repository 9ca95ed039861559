"""The analytic convolution: gradients, counts, fits, and accuracy on real digits (A1 to A4 of its acceptance list)."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.model.adapters import analytic, fit, pictures
from moesaic.model.adapters.functions import METHODS


def drawn(kind, count, size, seed=0):
    """Raw parameters [N, P] of varied kernels."""
    function = METHODS[kind]
    return function.release(function.draw(count, size, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("kind", METHODS)
def test_gradients_of_every_parameter(kind, size):
    raw = drawn(kind, 5, size).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: METHODS[kind].values(value, size), raw)


@pytest.mark.parametrize("kind", METHODS)
def test_any_raw_number_gives_a_kernel_in_range_and_back(kind):
    function = METHODS[kind]
    raw = torch.randn(200, len(function.names), dtype=torch.float64) * 5
    parameters = function.constrain(raw)
    for name, column in zip(function.names, parameters.T, strict=True):
        if name in ("scale", "along", "across"):
            assert (column >= 0.3).all()
        elif name == "wavelength":
            assert (column >= 2.0).all()
        elif name == "aspect":
            assert (column >= 0.0).all()
    assert function.values(raw, 5).isfinite().all()
    mild = torch.randn(200, len(function.names), dtype=torch.float64)
    assert torch.allclose(function.release(function.constrain(mild)), mild, atol=1e-6)


def test_functions_against_their_formulas():
    """Each at one place of the grid, from the formula as written in the docs; an edge answers to a ramp, a smoothing does not."""
    a, s, g, t, wave, p = 1.3, 1.1, 0.7, 0.4, 3.2, 0.5
    x, y = 1.0, -2.0  # column 3, row 0 of 5
    along, across = x * math.cos(t) + y * math.sin(t), -x * math.sin(t) + y * math.cos(t)
    expected = {
        "gabor": a * math.exp(-(along**2 + g**2 * across**2) / (2 * s**2)) * math.cos(2 * math.pi * along / wave + p),
        "gaussian": a * math.exp(-(along**2) / (2 * s**2) - across**2 / (2 * g**2)),
        "laplacian": a * (1 - (x * x + y * y) / (2 * s * s)) * math.exp(-(x * x + y * y) / (2 * s * s)),
        "derivative": -a * along / s * math.exp(-(along**2) / (2 * s**2) - across**2 / (2 * g**2)),
    }  # fmt: skip
    parameters = {"gabor": [a, s, g, t, wave, p], "laplacian": [a, s]}
    for kind, value in expected.items():
        numbers = torch.tensor([parameters.get(kind, [a, s, g, t])], dtype=torch.float64)
        found = METHODS[kind].values(METHODS[kind].release(numbers), 5)[0, 0, 3]
        assert float(found) == pytest.approx(value, rel=1e-6), kind


def test_smallest_scale_is_a_single_tap():
    numbers = torch.tensor([[1.0, 0.3, 1.0, 0.2, 4.0, 0.0]], dtype=torch.float64)
    kernel = METHODS["gabor"].values(METHODS["gabor"].release(numbers), 3)[0]
    assert float(kernel[1, 1]) == pytest.approx(1.0, abs=1e-6)
    rest = kernel.clone()
    rest[1, 1] = 0
    assert rest.abs().max() < 0.01


@pytest.mark.parametrize(("share", "kinds"), [(1.0, ("gabor",)), (0.5, ("gabor",)), (0.3, tuple(METHODS)), (0.0, ("gabor",))])  # fmt: skip
def test_parameters_are_counted_by_the_formula(share, kinds):
    layer = analytic.AnalyticConv2d(3, 16, 5, kinds, share)
    learned = sum(p.numel() for p in layer.parameters()) - 16
    found = layer.bank.kinds
    assert found.count("free") == 48 - round(share * 48)
    assert learned == analytic.count(found, 5)
    if kinds == ("gabor",):
        number = round(share * 48)
        assert learned == number * 6 + (48 - number) * 25


def test_layer_equals_the_plain_convolution_it_exports():
    layer = analytic.AnalyticConv2d(3, 8, 5, tuple(METHODS), 0.7, stride=2, padding=2, seed=1)
    x = torch.randn(2, 3, 11, 9)
    assert torch.equal(layer(x), layer.plain()(x))
    by_hand = functional.conv2d(x, layer.bank().view(8, 3, 5, 5), layer.bias, 2, 2)
    assert torch.equal(layer(x), by_hand)
    free = torch.nn.Conv2d(3, 8, 5)
    ratio = layer.weight.square().mean().sqrt() / free.weight.square().mean().sqrt()
    assert 0.9 < ratio.item() < 1.1  # starts as large as an ordinary layer


def test_a_mosaic_is_spread_and_every_part_learns():
    kinds = analytic.assign(20, ("gabor", "laplacian"), 0.25)
    places = [i for i, kind in enumerate(kinds) if kind != "free"]
    assert len(places) == 5
    assert set(np.diff(places)) == {4}
    layer = analytic.AnalyticConv2d(2, 10, 5, ("gabor", "laplacian"), 0.5, seed=0)
    layer(torch.randn(2, 2, 8, 8)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        moved = parameter.grad.reshape(len(parameter), -1).abs().sum(1)
        assert float(moved.min()) > 0, name


def test_bad_settings_are_refused_by_name():
    with pytest.raises(InputError, match="no kernel function 'gabour'; allowed: gabor"):
        analytic.assign(4, ("gabour",), 1.0)
    with pytest.raises(InputError, match="odd number of taps"):
        analytic.AnalyticConv2d(1, 1, 4)
    with pytest.raises(InputError, match="share"):
        analytic.assign(4, ("gabor",), 1.5)


def noisy(kind, count, size, seed):
    """Kernels with 5 % noise (of each kernel's own root mean square)."""
    clean = METHODS[kind].values(drawn(kind, count, size, seed), size)
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return clean + 0.05 * clean.square().mean(dim=(1, 2), keepdim=True).sqrt() * noise


@pytest.mark.parametrize("size", [5, 7, 11])
def test_a3_noisy_gabors_are_found_and_white_noise_is_not(size):
    found = fit.fit(noisy("gabor", 20, size, seed=7), "gabor").r2
    assert float(found.min()) >= 0.99
    control = fit.control(size, ("gabor",), count=20)
    assert float(control.mean()) <= 0.6
    assert float(control.max()) < float(found.min())


def test_a3_each_function_is_told_from_the_others():
    """Planted kernels of each kind: the information criterion finds the kind (a round Gaussian is one too)."""
    for kind in METHODS:
        kinds, _, r2 = fit.best(noisy(kind, 10, 7, seed=3), tuple(METHODS))
        assert float(r2.min()) >= 0.98, kind
        assert kinds.count(kind) >= 8, (kind, kinds)


def test_fit_is_as_good_as_scipys():
    kernels = torch.randn(3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = fit.fit(kernels, "gabor", starts=4)
    starts = fit._starts(kernels.flatten(1), "gabor", 5, 4, 0).view(3, 4, 6)
    for i in range(3):
        target = kernels[i].flatten().numpy()

        def residual(raw, target=target):
            value = METHODS["gabor"].values(torch.tensor(raw)[None], 5)
            return value.flatten().numpy() - target

        scipys = min(least_squares(residual, start.numpy()).cost * 2 for start in starts[i])
        spread = float(((target - target.mean()) ** 2).sum())
        assert float(found.r2[i]) >= 1 - scipys / spread - 0.05


def test_compression_of_a_trained_layer():
    """Half planted Gabors, half noise: the first become analytic, the others stay bit for bit, and the layer computes the same."""
    layer = torch.nn.Conv2d(2, 8, 7, padding=3)
    planted = noisy("gabor", 8, 7, seed=2).float()
    with torch.no_grad():
        layer.weight.view(16, 7, 7)[::2] = planted
    made, r2 = fit.compress(layer, ("gabor",), least=0.9)
    assert made.bank.kinds == ("gabor", "free") * 8
    assert float(r2[::2].min()) > 0.98
    assert torch.equal(made.weight.view(16, 7, 7)[1::2], layer.weight.view(16, 7, 7)[1::2])
    x = torch.randn(2, 2, 12, 12)
    assert float(((made(x) - layer(x)).norm() / layer(x).norm()).detach()) < 0.1
    saved = sum(p.numel() for p in layer.parameters()) - sum(p.numel() for p in made.parameters())
    assert saved == 8 * (49 - 6)


def test_pictures_show_every_kernel(tmp_path):
    bank = analytic.Bank(analytic.assign(10, tuple(METHODS), 0.8), 5, seed=0)
    figure = pictures.bank(bank)
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 10
    assert np.allclose(shown[3].images[0].get_array(), bank()[3].detach().numpy())
    assert {axis.get_title().split()[0] for axis in shown} == {*METHODS, "free"}
    figure.savefig(tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").stat().st_size > 2000
    assert len([a for a in pictures.kernels(torch.randn(70, 5, 5)).axes if a.images]) == 64
