"""Fit one layer: router, balance, scale and refit, in this order, on the activations that enter it.

Shapes: T tokens, D model width, F dense FFN width, S shared neurons, E experts, M neurons per expert, P = S + E M.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moesaic.experts import balance, reconstruct, routers, scale
from moesaic.experts.assignment import Assignment, generator
from moesaic.experts.calibration import LayerActivations, Some
from moesaic.experts.features import Ffn
from moesaic.model.families import Family


@dataclass(frozen=True)
class Layer:
    """Everything that one MoE layer is made of."""

    assignment: Assignment
    router_ED: Tensor
    bias_E: Tensor | None
    """Takes part in the choice of experts only; None without one."""
    factor: float
    """On the softmax weights of the chosen experts."""
    gate_PD: Tensor
    up_PD: Tensor
    down_PD: Tensor
    """Rows of gate and up, columns of down, in the order of reconstruct.columns; the factor is not in them."""
    audit: dict[str, Any] = field(default_factory=dict)
    """Reconstruction errors and choices; empty when no calibration was needed."""


def fit(
    ffn: Ffn,
    activations: LayerActivations | None,
    assignment: Assignment,
    settings: dict[str, Any],
    family: Family,
    start_ridge: float,
    seed: int,
    index: int,
) -> Layer:
    """Fit a layer whose neurons have been given to experts.

    Args:
        activations: None when no part of `settings` needs any. start_ridge: where the search for the refit's strength begins.
    """
    fitting: Any = activations.fitting() if activations else ()
    held_out: Any = activations.held_out() if activations else ()
    per_token = settings["per_token"]
    audit: dict[str, Any] = {}
    router_ED: Tensor = routers.METHODS[settings["router"]].fit(
        ffn, fitting, assignment, settings, seed, index
    )
    bias_E: Tensor | None = None
    if settings["scale"] == "unit" and family.bias:  # a bias is as large as the scores that it is added to
        router_ED = router_ED * scale.UNIT_TEMPERATURE
    if settings["balance"] > 0:
        x_TD = torch.cat([batch.x_TD for batch in fitting])
        balanced = balance.fit(x_TD, router_ED, per_token, settings["balance"], family.bias, family.scores)
        router_ED, bias_E = balanced.router_ED, balanced.bias_E
        audit |= {
            "load_cv_unbalanced": round(balanced.cv_before, 6),
            "load_cv_balanced": round(balanced.cv_after, 6),
        }
    if settings["scale"] == "unit" and not family.bias:
        router_ED = router_ED * scale.UNIT_TEMPERATURE
    gate_PD, up_PD, down_PD = stacked(ffn, assignment, seed, index)
    own = fresh(assignment, gate_PD, up_PD, down_PD)
    factor = scale.factor(settings)
    weigh = partial(
        scale.weigh,
        router_ED=router_ED,
        bias_E=bias_E,
        per_token=per_token,
        factor=factor,
        scores=family.scores,
    )
    if settings["scale"] == "calibrated":
        factor *= scale.calibrate(ffn, fitting, assignment, weigh, down_PD, own)
        weigh = partial(weigh, factor=factor)
        audit["factor"] = factor  # all digits: `moesaic merge` divides by it
    if settings["reconstruct"] == "least-squares":
        ridge = None if settings["ridge"] == "auto" else settings["ridge"]
        found = reconstruct.refit(
            reconstruct.gather(ffn, fitting, assignment, weigh, down_PD), ridge, start_ridge
        )
        audit |= {
            "ridge": found.ridge,
            "left_out": [round(value, 6) for value in found.left_out],
            "refitted": found.change_PD is not None,
        }
        before_PD = down_PD
        if found.change_PD is not None:
            down_PD = down_PD + found.change_PD
        if held_out:
            audit["error_before_refit"] = round(error(ffn, held_out, assignment, weigh, before_PD), 6)
    if held_out:
        audit["error"] = round(error(ffn, held_out, assignment, weigh, down_PD, own), 6)
    return Layer(assignment, router_ED, bias_E, factor, gate_PD, up_PD, down_PD, audit)


def error(
    ffn: Ffn,
    batches: Some,
    assignment: Assignment,
    weigh: Any,
    down_PD: Tensor,
    own: Ffn | None = None,
) -> float:
    """||MoE output - target|| / ||target|| on the batches, tokens weighted as in the fits."""
    off, size = 0.0, 0.0
    for batch in batches:
        target_TD = batch.weigh(batch.target(ffn))
        output_TD = batch.weigh(reconstruct.running(batch, assignment, weigh(batch.x_TD), own) @ down_PD)
        off += float((output_TD - target_TD).square().sum())
        size += float(target_TD.square().sum())
    return (off / max(size, 1e-30)) ** 0.5


def stacked(ffn: Ffn, assignment: Assignment, seed: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gate rows, up rows and down columns of the shared and routed neurons, each [P, D]; `drop`'s fresh ones are drawn here."""
    which_P = reconstruct.columns(assignment)
    found = [matrix[which_P] for matrix in (ffn.gate_FD, ffn.up_FD, ffn.down_DF.T)]
    if assignment.fresh_EM is not None:
        fresh_P = torch.cat(
            [torch.zeros(assignment.shared_S.numel(), dtype=torch.bool), assignment.fresh_EM.flatten()]
        )
        stream = generator(seed, index, 6)
        for rows_PD in found:
            old = rows_PD[fresh_P]
            rows_PD[fresh_P] = old.mean() + old.std() * torch.randn(old.shape, generator=stream)
    return found[0], found[1], found[2]


def fresh(assignment: Assignment, gate_PD: Tensor, up_PD: Tensor, down_PD: Tensor) -> Ffn | None:
    """The stacked neurons as an FFN, to compute activations with; None where the parent's can be taken."""
    return None if assignment.fresh_EM is None else Ffn(gate_PD, up_PD, down_PD.T)


def output(
    layer: Layer, activations: LayerActivations, settings: dict[str, Any], scores: str, at: int
) -> Tensor:
    """What the MoE layer computes on a batch [T, D]."""
    batch = activations.at(at)
    weights_TE = scale.weigh(
        batch.x_TD, layer.router_ED, layer.bias_E, settings["per_token"], layer.factor, scores
    )
    own = fresh(layer.assignment, layer.gate_PD, layer.up_PD, layer.down_PD)
    return reconstruct.running(batch, layer.assignment, weights_TE, own) @ layer.down_PD
