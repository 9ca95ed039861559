"""Fit given kernels by functions: how much of a trained bank is analytic, and the bank made smaller by that much.

For each kernel: the best few of a random dictionary by correlation (the value is linear in the amplitude, so it is solved for), then
Levenberg-Marquardt on all of them at once. A function with 6 parameters explains part of any 9 taps, so `control` says how much of white
noise it explains at the same size: a fit is evidence only above that.

Shapes: N kernels, S starts of each, P parameters, k taps on a side, K = k^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from moesaic.model.adapters.analytic import FREE, AnalyticConv2d
from moesaic.model.adapters.functions import METHODS

DICTIONARY = 4000
"""Candidates that starts are chosen from."""
ROUNDS = 60
"""Levenberg-Marquardt steps."""


@dataclass(frozen=True)
class Fit:
    """One function fitted to each kernel."""

    kind: str
    raw: Tensor
    """[N, P]"""
    r2: Tensor
    """1 - squared error / squared distance from the kernel's own mean [N]; a constant kernel has 0."""


def fit(kernels_Nkk: Tensor, kind: str, starts: int = 4, seed: int = 0) -> Fit:
    """Least squares of one function to each kernel, float64."""
    count, size = kernels_Nkk.shape[0], kernels_Nkk.shape[-1]
    target_NK = kernels_Nkk.detach().double().flatten(1)
    raw_MP = _starts(target_NK, kind, size, starts, seed)
    target_MK = target_NK.repeat_interleave(starts, 0)

    error_M = _errors(raw_MP, target_MK, kind, size)
    damping_M = torch.full_like(error_M, 1e-2)
    eye = torch.eye(raw_MP.shape[1], dtype=torch.float64)
    for _ in range(ROUNDS):
        value_MK, jac_MKP = _jacobian(raw_MP, kind, size)
        rest_MK = value_MK - target_MK
        normal_MPP = jac_MKP.mT @ jac_MKP
        # Marquardt's scaling, with a floor for parameters that the kernel does not depend on (the angle of a round bell)
        scale_MP = normal_MPP.diagonal(dim1=1, dim2=2).clamp_min(1e-9)
        damped = normal_MPP + damping_M[:, None, None] * torch.diag_embed(scale_MP) + 1e-12 * eye
        step_MP = torch.linalg.solve(damped, (jac_MKP.mT @ rest_MK[:, :, None]))[:, :, 0]
        tried_MP = raw_MP - step_MP.clamp(-2.0, 2.0)
        tried_M = _errors(tried_MP, target_MK, kind, size)
        better_M = tried_M < error_M
        settled = not ((error_M - tried_M) > 1e-7 * error_M).any() and bool((damping_M > 1e3).all())
        raw_MP = torch.where(better_M[:, None], tried_MP, raw_MP)
        error_M = torch.where(better_M, tried_M, error_M)
        damping_M = torch.where(better_M, damping_M / 3, damping_M * 4).clamp(1e-9, 1e9)
        if settled:
            break
    best_N = error_M.view(count, starts).argmin(1)
    chosen = torch.arange(count) * starts + best_N
    spread_N = (target_NK - target_NK.mean(1, keepdim=True)).square().sum(1)
    r2_N = torch.where(spread_N > 0, 1 - error_M[chosen] / spread_N.clamp_min(1e-30), 0.0)
    return Fit(kind, raw_MP[chosen], r2_N)


def best(kernels_Nkk: Tensor, kinds: Sequence[str], seed: int = 0) -> tuple[list[str], list[Tensor], Tensor]:
    """The function of each kernel by the Bayesian information criterion: its kind, its raw parameters [P], its R^2 (all [N]).

    K log(error / K) + P log K: a function with more parameters has to earn them.
    """
    taps = kernels_Nkk[0].numel()
    fits = [fit(kernels_Nkk, kind, seed=seed) for kind in kinds]
    costs = torch.stack([
        taps * torch.log((1 - found.r2).clamp_min(1e-12))
        + len(METHODS[found.kind].names) * torch.log(torch.tensor(float(taps), dtype=torch.float64))
        for found in fits
    ])  # fmt: skip
    chosen = costs.argmin(0).tolist()
    raws = [fits[which].raw[i] for i, which in enumerate(chosen)]
    return (
        [fits[which].kind for which in chosen],
        raws,
        torch.stack([fits[w].r2[i] for i, w in enumerate(chosen)]),
    )


def control(size: int, kinds: Sequence[str], count: int = 64, seed: int = 0) -> Tensor:
    """R^2 of the same fit to white noise of the same size [count]: what it explains of kernels without any form."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, size, size, generator=random, dtype=torch.float64)
    return best(noise, kinds, seed)[2]


def compress(
    layer: nn.Conv2d, kinds: Sequence[str] = tuple(METHODS), least: float = 0.9, seed: int = 0
) -> tuple[AnalyticConv2d, Tensor]:
    """A trained convolution as a mosaic: kernels with R^2 of at least `least` become analytic, the rest stay as they are.

    Returns:
        The layer, and the R^2 of every kernel [O I].

    Raises:
        ValueError: a convolution with groups, dilation, unequal sides, strides or padding.
    """
    sides = {*layer.kernel_size, layer.kernel_size[0]}
    odd = isinstance(layer.padding, str) or len({*layer.padding}) > 1 or len({*layer.stride}) > 1
    if layer.groups != 1 or set(layer.dilation) != {1} or len(sides) > 1 or odd:
        raise ValueError(
            "compress takes square kernels without groups or dilation, equal strides and numeric padding"
        )
    kernels_Nkk = layer.weight.detach().flatten(0, 1)
    found, raws, r2_N = best(kernels_Nkk, kinds, seed)
    kept = [kind if score >= least else FREE for kind, score in zip(found, r2_N.tolist(), strict=True)]
    out, channels = layer.weight.shape[:2]
    assert not isinstance(layer.padding, str)
    made = AnalyticConv2d(
        channels, out, layer.kernel_size[0], stride=layer.stride[0], padding=layer.padding[0],
        bias=layer.bias is not None, seed=seed,
    )  # fmt: skip
    made.bank = type(made.bank)(kept, layer.kernel_size[0], seed)
    with torch.no_grad():
        for kind, raw in made.bank.raw.items():
            rows = getattr(made.bank, f"rows_{kind}").tolist()
            values = kernels_Nkk[rows] if kind == FREE else torch.stack([raws[i] for i in rows])
            raw.copy_(values)
        if made.bias is not None and layer.bias is not None:
            made.bias.copy_(layer.bias)
    return made.to(layer.weight.dtype), r2_N


def _starts(target_NK: Tensor, kind: str, size: int, starts: int, seed: int) -> Tensor:
    """The dictionary's best by correlation, with the amplitude that fits best, raw [N * S, P]."""
    function = METHODS[kind]
    drawn_DP = function.draw(DICTIONARY, size, torch.Generator().manual_seed(seed))
    atoms_DK = function.values(function.release(drawn_DP), size).flatten(1)
    norm_D = atoms_DK.norm(dim=1).clamp_min(1e-12)
    score_ND = target_NK @ (atoms_DK / norm_D[:, None]).T
    chosen_NS = score_ND.abs().topk(starts, dim=1).indices
    amplitude_NS = score_ND.gather(1, chosen_NS) / norm_D[chosen_NS]
    parameters_NSP = drawn_DP[chosen_NS].clone()
    parameters_NSP[..., 0] = amplitude_NS
    return function.release(parameters_NSP.flatten(0, 1))


def _jacobian(raw_MP: Tensor, kind: str, size: int) -> tuple[Tensor, Tensor]:
    """Kernels [M, K] and their derivatives by each raw parameter [M, K, P]: kernels do not depend on each other's parameters."""
    rows, width = raw_MP.shape
    along = torch.eye(width, dtype=raw_MP.dtype).repeat_interleave(rows, 0)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(raw_MP.repeat(width, 1), along)
        value, slope = forward_ad.unpack_dual(METHODS[kind].values(dual, size).flatten(1))
    assert slope is not None
    return value[:rows], slope.view(width, rows, -1).permute(1, 2, 0)


def _errors(raw_MP: Tensor, target_MK: Tensor, kind: str, size: int) -> Tensor:
    """Sum of squared differences [M]; a step that leaves the numbers is never better."""
    error_M = (METHODS[kind].values(raw_MP, size).flatten(1) - target_MK).square().sum(1)
    return torch.nan_to_num(error_M, nan=torch.inf)
