"""What a depth router should say: which (token, layer) pairs deserve their FFN, from what the FFN did (DLO, arXiv 2407.11030).

mu = cos(h', h' + FFN(norm h')), in float32 and without gradient: an FFN that hardly turns the residual stream can be left out.

Shapes: L layers with a router, P tokens that are labelled, D model width.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Labels = Callable[[Tensor, Tensor, float, Sequence[float]], Tensor]
"""(similarity mu [L, P], which tokens ran [L, P], mean budget, budgets by layer) -> labels [L, P], 1 for tokens that should run."""


def similarity(state_PD: Tensor, ffn_PD: Tensor) -> Tensor:
    """mu of each token [P]."""
    state_PD = state_PD.float()
    return functional.cosine_similarity(state_PD, state_PD + ffn_PD.float(), dim=1)


def pooled(mu_LP: Tensor, ran_LP: Tensor, mean: float, budgets: Sequence[float]) -> Tensor:
    """`cos-global`: the ceil(mean * P * L) least similar pairs of all layers together; layers compete for the budget."""
    labels = _least(mu_LP.flatten(), quota(mean, mu_LP.numel()))
    return labels.view_as(mu_LP)


def by_layer(mu_LP: Tensor, ran_LP: Tensor, mean: float, budgets: Sequence[float]) -> Tensor:
    """`cos-layer`: in each layer the ceil(mean * P) least similar tokens."""
    return torch.stack([_least(mu_P, quota(mean, len(mu_P))) for mu_P in mu_LP])


def own(mu_LP: Tensor, ran_LP: Tensor, mean: float, budgets: Sequence[float]) -> Tensor:
    """`self`: what the router chose anyway; it only learns to be decided about it."""
    return ran_LP.float()


METHODS: dict[str, Labels] = {"cos-global": pooled, "cos-layer": by_layer, "self": own}


def quota(share: float, count: int) -> int:
    """ceil(share * count), safe against a product that is a rounding error above a whole number."""
    return min(count, math.ceil(share * count - 1e-9 * count))


def _least(mu_N: Tensor, count: int) -> Tensor:
    """1 at the `count` smallest values, 0 elsewhere; of equal ones the first."""
    labels = torch.zeros_like(mu_N)
    labels[mu_N.argsort(stable=True)[:count]] = 1.0
    return labels
