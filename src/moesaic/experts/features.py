"""Statistics of one FFN layer on calibration text, gathered batch by batch: memory does not grow with the number of tokens.

Shapes: T tokens, D model width, F dense FFN width, P random projections, C data clusters.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moesaic.experts.bits import Bits

PROJECTIONS = 256
"""Random directions onto which activation patterns are projected (Johnson-Lindenstrauss keeps their angles)."""


@dataclass(frozen=True)
class Ffn:
    """The dense SwiGLU FFN of a layer: silu(x gate^T) * (x up^T), times down^T."""

    gate_FD: Tensor
    up_FD: Tensor
    down_DF: Tensor

    @property
    def width(self) -> int:
        """F."""
        return self.gate_FD.shape[0]

    def hidden(self, x_TD: Tensor) -> Tensor:
        """The neurons' activations h [T, F] (the input of the down projection)."""
        return functional.silu(x_TD @ self.gate_FD.T) * (x_TD @ self.up_FD.T)


@dataclass(frozen=True)
class Activations:
    """What a layer does on a batch of calibration tokens."""

    x_TD: Tensor
    """Input of the FFN (after its norm)."""
    h_TF: Tensor
    """Activations of the neurons."""
    fold: int = 0
    """The domain (or other group) that the tokens belong to, for choices by cross-validation."""
    target_TD: Tensor | None = None
    """What the layer should add to the residual stream; None: the dense FFN's own output, computed when asked for."""

    weight_T: Tensor | None = None
    """1 / RMS of the residual stream after the layer: what comes later sees the stream normed, so an error counts relative to it. Without
    this a handful of tokens with massive activations (up to 94 % of a layer's energy in SmolLM2) would decide every fit."""

    gradient_TF: Tensor | None = None
    """dL/dh of the dense parent, L the sum of the next-token losses."""
    cluster_T: Tensor | None = None
    """Data cluster of each token, for the importance by cluster."""

    def weigh(self, values: Tensor) -> Tensor:
        """Rows [T, ...] times the tokens' weights."""
        return values if self.weight_T is None else values * self.weight_T[:, None]

    def target(self, ffn: Ffn) -> Tensor:
        """What the layer should add to the residual stream [T, D]."""
        return self.h_TF @ ffn.down_DF.T if self.target_TD is None else self.target_TD


@dataclass(frozen=True)
class Features:
    """What split methods may know of a layer; fields that were not asked for are None."""

    tokens: int
    rate_F: Tensor
    """Activation rate: the share of tokens for which the neuron is among the top share of contributions |h| * ||down column||.
    Source: CMoE (arXiv 2502.04416), section 3.1, with |h| weighted by the down projection's norm."""
    energy_F: Tensor
    """Mean squared contribution."""
    h_mean_F: Tensor
    h_square_F: Tensor
    """First and second moments of h."""
    x_mean_D: Tensor
    x_gram_DD: Tensor
    """First and second moments of the layer input."""
    patterns_FP: Tensor
    """Contribution of each neuron over the tokens, projected to P random directions, unit length: neurons that work on the same tokens
    lie close to each other."""
    coactivation_FF: Tensor | None = None
    """How often two neurons are active (see rate) on the same token; the diagonal counts each neuron."""
    active_TF: Bits | None = None
    """Which neurons are active on which token."""
    importance_CF: Tensor | None = None
    """Mean |h * dL/dh| of each data cluster (LLaMA-MoE, arXiv 2406.16554; first-order Taylor as in SNIP)."""
    sensitivity_F: Tensor | None = None
    """Mean of (h * dL/dh)^2: the squared change of a token's loss when the neuron is switched off, to first order."""


def active(contribution_TF: Tensor, top: float) -> Tensor:
    """True for the top share of neurons of each token [T, F]; ties at the threshold count as active."""
    keep = max(1, round(top * contribution_TF.shape[1]))
    return contribution_TF >= contribution_TF.topk(keep, dim=1).values[:, -1:]


@torch.no_grad()
def sensitivity(ffn: Ffn, batches: Iterable[Activations]) -> Tensor:
    """Features.sensitivity_F alone, of batches with gradients."""
    total, tokens = torch.zeros(ffn.width, dtype=torch.float64), 0
    for batch in batches:
        assert batch.gradient_TF is not None
        total += (batch.h_TF * batch.gradient_TF).square().sum(dim=0)
        tokens += len(batch.h_TF)
    return (total / tokens).float()


@torch.no_grad()
def measure(
    ffn: Ffn,
    batches: Iterable[Activations],
    needs: frozenset[str],
    top: float,
    generator: torch.Generator,
    clusters: int = 0,
) -> Features:
    """One pass over a layer's activations.

    Args:
        needs: what else than the cheap statistics is wanted: coactivation, active. top: share of the neurons that count as active.
        clusters: data clusters of the importance; batches then carry gradients and the tokens' clusters.
    """
    width, hidden = ffn.width, ffn.gate_FD.shape[1]
    norm_F = ffn.down_DF.norm(dim=0)
    rate, energy, mean, square = (torch.zeros(width, dtype=torch.float64) for _ in range(4))
    x_mean, gram = torch.zeros(hidden, dtype=torch.float64), torch.zeros(hidden, hidden)
    patterns = torch.zeros(width, PROJECTIONS)
    together = torch.zeros(width, width) if "coactivation" in needs else None
    packed: list[np.ndarray] = []
    importance, of_cluster = torch.zeros(clusters, width), torch.zeros(clusters)
    sensitivity = torch.zeros(width, dtype=torch.float64)
    tokens, with_gradients = 0, False
    for batch in batches:
        contribution_TF = batch.weigh(batch.h_TF.abs() * norm_F)
        on_TF = active(contribution_TF, top)
        tokens += len(on_TF)
        rate += on_TF.sum(dim=0)
        energy += contribution_TF.square().sum(dim=0)
        mean += batch.h_TF.sum(dim=0)
        square += batch.h_TF.square().sum(dim=0)
        x_mean += batch.x_TD.sum(dim=0)
        gram += batch.x_TD.T @ batch.x_TD
        patterns += contribution_TF.T @ torch.randn(len(on_TF), PROJECTIONS, generator=generator)
        if together is not None:
            on = on_TF.float()
            together += on.T @ on
        if batch.gradient_TF is not None:
            change_TF, with_gradients = batch.h_TF * batch.gradient_TF, True
            sensitivity += change_TF.square().sum(dim=0)
            if batch.cluster_T is not None:
                importance.index_add_(0, batch.cluster_T, change_TF.abs())
                of_cluster += torch.bincount(batch.cluster_T, minlength=clusters)
        if "active" in needs:
            packed.append(np.packbits(on_TF.numpy(), axis=1))
    assert tokens, "no calibration tokens"
    return Features(
        tokens,
        (rate / tokens).float(),
        (energy / tokens).float(),
        (mean / tokens).float(),
        (square / tokens).float(),
        (x_mean / tokens).float(),
        gram / tokens,
        functional.normalize(patterns, dim=1),
        together,
        Bits(np.concatenate(packed), width) if packed else None,
        importance / of_cluster[:, None] if clusters else None,
        (sensitivity / tokens).float() if with_gradients else None,
    )
