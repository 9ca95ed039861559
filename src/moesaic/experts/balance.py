"""A bias per expert that evens out the expected load: the router's trade-off between quality and balance, before any training.

Balancing rule: auxiliary-loss-free balancing (arXiv 2408.15664), b_e += step * sign(mean load - load_e), run on the calibration logits
until the load is even. Families without a bias get it folded into the weights: v is the direction with x v = 1 on average (ridge
regression of 1 on the layer input), and row e becomes w_e + b_e v.

Shapes: T tokens, D model width, E experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 300


@dataclass(frozen=True)
class Balanced:
    """A router with a bias, and what the bias did to the load."""

    router_ED: Tensor
    bias_E: Tensor | None
    """None when it is folded into the weights."""
    cv_before: float
    cv_after: float
    """Coefficient of variation of the experts' load on the calibration text."""


def fit(
    x_TD: Tensor,
    router_ED: Tensor,
    per_token: int,
    strength: float,
    own_bias: bool,
    scores: str,
    ridge: float = 1e-3,
) -> Balanced:
    """Bias of `strength` times the one that makes the load even.

    Args:
        own_bias: the family has a bias for the choice; False folds it into the weights. scores: see scale.weigh.
    """
    logits_TE = x_TD @ router_ED.T
    score_TE = logits_TE.sigmoid() if scores == "sigmoid" else logits_TE
    if own_bias:
        one_T = torch.ones(len(x_TD))
        direction_D = torch.zeros(x_TD.shape[1])
    else:
        gram_DD = (x_TD.T @ x_TD).double()
        gram_DD.diagonal().add_(ridge * gram_DD.diagonal().mean())
        direction_D = torch.linalg.solve(gram_DD, x_TD.sum(dim=0).double()).float()
        one_T = x_TD @ direction_D
    bias_E = torch.zeros(router_ED.shape[0])
    step = float(score_TE.std(dim=1, unbiased=False).mean()) * 0.1
    for turn in range(STEPS):
        load_E = _load(score_TE + one_T[:, None] * bias_E, per_token)
        bias_E += step * (1 - turn / STEPS) * (load_E.mean() - load_E).sign()
    bias_E = strength * (bias_E - bias_E.mean())
    before, after = (
        _cv(_load(score_TE + one_T[:, None] * bias, per_token)) for bias in (torch.zeros_like(bias_E), bias_E)
    )
    if own_bias:
        return Balanced(router_ED, bias_E, before, after)
    return Balanced(router_ED + torch.outer(bias_E, direction_D), None, before, after)


def _load(score_TE: Tensor, per_token: int) -> Tensor:
    index = score_TE.topk(per_token, dim=1).indices
    return torch.bincount(index.flatten(), minlength=score_TE.shape[1]).float()


def _cv(load_E: Tensor) -> float:
    return float(load_E.std(unbiased=False) / load_E.mean())
