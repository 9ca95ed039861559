"""What a chosen expert weighs: the factor on the softmax of the chosen logits, by name.

With softmax over K chosen experts each weighs 1 / K on average. LLaMA-MoE multiplies by N / K and calls it a re-scale factor; for its
4 of 16 that is 1 per expert, for 2 of 8 it is 2. docs/decisions/0002 compares the starting losses.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from moesaic.experts import reconstruct, sizes
from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations, Ffn
from moesaic.model import families

UNIT_TEMPERATURE = 2.0**-12
"""Top-k choice does not change with the router's length, softmax does: a short router gives all chosen experts the same weight."""

FACTORS: dict[str, Callable[[int, int], float]] = {
    "none": lambda experts, per_token: 1.0,
    "times-k": lambda experts, per_token: float(per_token),
    "unit": lambda experts, per_token: float(per_token),
    "n-over-k": lambda experts, per_token: experts / per_token,
    "mean": lambda experts, per_token: float(experts),
    "norm": lambda experts, per_token: per_token * (experts / per_token) ** 0.5,
    "calibrated": lambda experts, per_token: float(per_token),
}
"""Factor for E experts, K of them chosen; `calibrated` starts from times-k."""
EACH_ONE = ("times-k", "unit", "calibrated")
"""Those by which a chosen expert weighs 1, which is right while the chosen ones are no more than one FFN."""


def factor(settings: dict[str, Any]) -> float:
    """The factor of a layer's settings, before it is calibrated.

    G pieces make up one copy of the FFN (splits copy and drop). More chosen ones than that are several copies, whose mean is the FFN: K is G then.
    """
    per_token = settings["per_token"]
    if settings["split"] in sizes.COPYING and settings["scale"] in EACH_ONE:
        per_token = min(per_token, settings["granularity"])
    return FACTORS[settings["scale"]](settings["experts"], per_token)


def calibrate(
    ffn: Ffn,
    batches: Iterable[Activations],
    assignment: Assignment,
    weigh: Callable[[Tensor], Tensor],
    down_PD: Tensor,
    own: Ffn | None = None,
) -> float:
    """The factor on the routed output that brings shared + routed output closest to the dense output (least squares)."""
    shared = assignment.shared_S.numel()
    above, below = 0.0, 0.0
    for batch in batches:
        a_TP = batch.weigh(reconstruct.running(batch, assignment, weigh(batch.x_TD), own))
        routed_TD = a_TP[:, shared:] @ down_PD[shared:]
        missing_TD = batch.weigh(batch.target(ffn)) - a_TP[:, :shared] @ down_PD[:shared]
        above += float((routed_TD * missing_TD).sum())
        below += float(routed_TD.square().sum())
    return max(above / max(below, 1e-30), 0.0)


def weigh(
    x_TD: Tensor, router_ED: Tensor, bias_E: Tensor | None, per_token: int, factor: float, scores: str
) -> Tensor:
    """Weights [T, E] of the experts, 0 where not chosen: what the stock classes compute.

    Args:
        bias_E: takes part in the choice only. scores: softmax (over the chosen logits) or sigmoid (divided by the chosen ones' sum).
    """
    logits_TE = x_TD @ router_ED.T
    score_TE = logits_TE.sigmoid() if scores == "sigmoid" else logits_TE
    index_TK = (score_TE if bias_E is None else score_TE + bias_E).topk(per_token, dim=1).indices
    weights_TK = families.chosen_weights(logits_TE.gather(1, index_TK), scores)
    return torch.zeros_like(logits_TE).scatter(1, index_TK, weights_TK * factor)
