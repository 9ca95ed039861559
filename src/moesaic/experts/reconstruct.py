"""Closed-form refit of the down projections, so that the sparse layer's output matches the dense layer's.

With routing fixed, the MoE output is A D^T, where row t of A [T, F] holds the activations of the shared neurons and of the chosen
experts' neurons, times the weight of their expert. The ridge solution around the present D is
D'^T = D^T + (A'A + ridge * mean diag(A'A) * I)^-1 A'(Y - A D^T), Y = dense output on the same inputs.
Statistics are taken on the converted model's own activations (layer by layer), so that errors do not add up unseen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations


@dataclass(frozen=True)
class Routed:
    """How the calibration tokens were routed in a layer."""

    weights_TE: Tensor
    """Weight of each expert, 0 where it was not chosen; the scale is in it."""
    load_E: Tensor
    """Share of the token slots that each expert got, sums to 1."""


def route(x_TD: Tensor, router_ED: Tensor, per_token: int, scale: float) -> Routed:
    """Top-k, softmax over the chosen logits, times `scale`: what the stock classes compute."""
    logits_TE = x_TD @ router_ED.T
    top, index = logits_TE.topk(per_token, dim=1)
    weights_TE = torch.zeros_like(logits_TE).scatter(1, index, top.softmax(dim=1) * scale)
    return Routed(weights_TE, torch.bincount(index.flatten(), minlength=router_ED.shape[0]) / index.numel())


def masked(activations: Activations, assignment: Assignment, routed: Routed) -> Tensor:
    """A [T, F]: activations of the neurons that run, times the weight of their expert."""
    weights_TF = torch.ones_like(activations.h_TF)
    for expert, neurons in enumerate(assignment.routed_EM):
        weights_TF[:, neurons] = routed.weights_TE[:, expert : expert + 1]
    return activations.h_TF * weights_TF


def refit(a_TF: Tensor, target_TD: Tensor, down_DF: Tensor, ridge: float) -> Tensor:
    """The new down projection [D, F]."""
    gram_FF = a_TF.T @ a_TF
    gram_FF.diagonal().add_(ridge * gram_FF.diagonal().mean())
    residual_FD = a_TF.T @ (target_TD - a_TF @ down_DF.T)
    return down_DF + torch.cholesky_solve(residual_FD, torch.linalg.cholesky(gram_FF)).T


def relative_error(output_TD: Tensor, target_TD: Tensor) -> float:
    """||output - target|| / ||target|| over all tokens."""
    return float((output_TD - target_TD).norm() / target_TD.norm().clamp_min(1e-12))
