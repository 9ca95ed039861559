"""Closed-form refit of the down projections, so that the sparse layer's output matches the dense layer's.

With routing fixed, the MoE output is A D, where row t of A [T, P] holds the activations of the shared neurons and of the chosen experts'
neurons, times the weight of their expert, and D [P, D] the down projections, stacked. The ridge solution around the present D is
D' = D + (A'A + ridge * mean diag(A'A) * I)^-1 A'(Y - A D). Y is what brings the residual stream to where the dense parent's is after the
layer (`compensate: 1`, so that the errors of earlier layers are made up for as far as they can be), or the dense FFN's output on the
converted model's own inputs (`compensate: 0`). Shared and routed experts are refitted together. Statistics are gathered batch by batch, one set per fold; errors on a left-out fold follow from them in closed form:
||Y - A (D + X)||^2 = r - 2 tr(X'B) + tr(X'G X) with G = A'A, B = A'(Y - A D), r = ||Y - A D||^2. Rows are divided by the RMS of the
residual stream, which is what the next norm does to errors.

Shapes: T tokens, D model width, S shared neurons, E experts, M neurons per expert, P = S + E M.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.errors import InputError
from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations, Ffn

GRID = 3.0
"""Factor between strengths that are tried; each layer starts from its predecessor's choice."""
MOST_TRIED = 7
"""Strengths after which the search ends."""


@dataclass
class Normal:
    """Sums over the tokens of one fold."""

    gram_PP: Tensor
    product_PD: Tensor
    square: float
    """||Y - A D||^2 before the refit."""
    target: float
    """||Y||^2."""


@dataclass(frozen=True)
class Refit:
    """A chosen change of the stacked down projections."""

    change_PD: Tensor | None
    """None: the refit would not have lowered the error on left-out text, so nothing is changed."""
    ridge: float
    left_out: list[float]
    """Squared error on each left-out fold, as a ratio to the error without refit."""


def columns(assignment: Assignment) -> Tensor:
    """Neuron of each column of A [P]: the shared ones, then each expert's."""
    return torch.cat([assignment.shared_S, assignment.routed_EM.flatten()])


def inner(batch: Activations, assignment: Assignment, own: Ffn | None) -> Tensor:
    """Activations [T, P] of the stacked neurons. Args: own: the stacked neurons where some are not the parent's (split `drop`)."""
    return batch.h_TF.index_select(1, columns(assignment)) if own is None else own.hidden(batch.x_TD)


def running(batch: Activations, assignment: Assignment, weights_TE: Tensor, own: Ffn | None = None) -> Tensor:
    """A [T, P]: activations of the neurons that run, times the weight of their expert."""
    experts, neurons = assignment.routed_EM.shape
    shared, a_TP = assignment.shared_S.numel(), inner(batch, assignment, own)
    a_TP[:, shared:].view(-1, experts, neurons).mul_(weights_TE[:, :, None])
    return a_TP


def gather(
    ffn: Ffn,
    batches: Iterable[Activations],
    assignment: Assignment,
    weigh: Callable[[Tensor], Tensor],
    down_PD: Tensor,
) -> dict[int, Normal]:
    """The normal equations of each fold.

    Args:
        weigh: layer input [T, D] -> weights of the experts [T, E]. down_PD: present down projections, one row per column of A.
    """
    folds: dict[int, Normal] = {}
    for batch in batches:
        a_TP = batch.weigh(running(batch, assignment, weigh(batch.x_TD)))
        target_TD = batch.weigh(batch.target(ffn))
        residual_TD = target_TD - a_TP @ down_PD
        size = a_TP.shape[1]
        if batch.fold not in folds:
            folds[batch.fold] = Normal(torch.zeros(size, size), torch.zeros(down_PD.shape), 0.0, 0.0)
        fold = folds[batch.fold]
        fold.gram_PP.addmm_(a_TP.T, a_TP)
        fold.product_PD.addmm_(a_TP.T, residual_TD)
        fold.square += float(residual_TD.square().sum())
        fold.target += float(target_TD.square().sum())
    return folds


def solve(gram_PP: Tensor, product_PD: Tensor, ridge: float) -> Tensor:
    """(G + ridge * mean diag(G) * I)^-1 B, in float64 where float32 does not do. Raises InputError when that does not do either."""
    for dtype in (torch.float32, torch.float64):
        gram = gram_PP.to(dtype, copy=True)
        gram.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-12))
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            return torch.cholesky_solve(product_PD.to(dtype), factor).float()
    raise InputError(
        f"experts.ridge: {ridge:.3g} is too small for the rounding of this layer's statistics; take a larger one or auto, or more experts.calibration.tokens"
    )


def left_out(normal: Normal, change_PD: Tensor) -> float:
    """Squared error of a fold with changed down projections, as a ratio to that without."""
    after = normal.square - 2 * float((change_PD * normal.product_PD).sum())
    after += float((change_PD * (normal.gram_PP @ change_PD)).sum())
    return after / max(normal.square, 1e-30)


def refit(folds: dict[int, Normal], ridge: float | None, start: float) -> Refit:
    """Choose the strength by leaving out one fold at a time, then fit on all of them.

    The strength is the one with the lowest mean error on left-out text; when every strength makes that error larger than it
    is without refit, the down projections stay as they are.

    Args:
        ridge: a fixed strength, or None to choose. start: where the search begins (the choice of the layer before).
    """
    gram_PP: Tensor = sum(fold.gram_PP for fold in folds.values())  # type: ignore[assignment]
    product_PD: Tensor = sum(fold.product_PD for fold in folds.values())  # type: ignore[assignment]

    def errors(strength: float) -> list[float]:
        found = []
        for fold in folds.values():
            try:
                change = solve(gram_PP - fold.gram_PP, product_PD - fold.product_PD, strength)
            except InputError:
                if ridge is not None:
                    raise
                return [math.inf] * len(folds)  # the search goes on to stronger ones
            found.append(left_out(fold, change))
        return found

    tried: dict[float, list[float]] = {}
    best = ridge if ridge is not None else start
    tried[best] = errors(best)
    while ridge is None:
        for other in (best * GRID, best / GRID):
            if other not in tried and 1e-5 < other < 1e4:
                tried[other] = errors(other)
        lowest = min(tried, key=lambda strength: _mean(tried[strength]))
        if lowest == best or len(tried) > MOST_TRIED:
            best = lowest
            break
        best = lowest
    if math.isfinite(_mean(tried[best])) and _mean(tried[best]) >= 1.0:
        return Refit(None, best, tried[best])
    return Refit(solve(gram_PP, product_PD, best), best, tried[best])


def _mean(ratios: list[float]) -> float:
    return sum(ratios) / len(ratios)
