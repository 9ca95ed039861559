"""Activation statistics of one FFN layer on calibration text; every split method and router fit reads from here.

Shapes: T tokens, D model width, F dense FFN width, P projected tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Ffn:
    """The dense SwiGLU FFN of a layer: silu(x gate^T) * (x up^T), times down^T."""

    gate_FD: Tensor
    up_FD: Tensor
    down_DF: Tensor

    @property
    def width(self) -> int:
        return self.gate_FD.shape[0]

    def hidden(self, x_TD: Tensor) -> Tensor:
        """The neurons' activations h [T, F] (the input of the down projection)."""
        return functional.silu(x_TD @ self.gate_FD.T) * (x_TD @ self.up_FD.T)


@dataclass(frozen=True)
class Activations:
    """What one layer does on the calibration tokens."""

    ffn: Ffn
    x_TD: Tensor
    """Input of the FFN (after its norm)."""
    h_TF: Tensor
    """Activations of the neurons."""

    def contribution(self) -> Tensor:
        """|h| times the norm of the neuron's down column, [T, F]: the length of what each neuron adds to the residual."""
        return self.h_TF.abs() * self.ffn.down_DF.norm(dim=0)

    def rate(self, top: float = 0.1) -> Tensor:
        """Activation rate [F]: the share of tokens for which a neuron is among the top share of contributions.

        Source: CMoE (arXiv 2502.04416), section 3.1, with |h| weighted by the down projection's norm.
        """
        contribution_TF = self.contribution()
        keep = max(1, round(top * self.ffn.width))
        threshold_T1 = contribution_TF.topk(keep, dim=1).values[:, -1:]
        return (contribution_TF >= threshold_T1).float().mean(dim=0)

    def energy(self) -> Tensor:
        """Mean squared contribution [F]."""
        return self.contribution().square().mean(dim=0)

    def patterns(self, generator: torch.Generator, width: int = 256) -> Tensor:
        """Each neuron's contribution over the tokens, centred by token, projected to `width` random directions, unit length [F, P].

        Neurons that fire on the same tokens lie close to each other (Johnson-Lindenstrauss keeps their angles).
        """
        contribution_TF = self.contribution()
        contribution_TF = contribution_TF / contribution_TF.norm(dim=0).clamp_min(1e-12)
        projection_TP = torch.randn(contribution_TF.shape[0], width, generator=generator) / width**0.5
        return functional.normalize(contribution_TF.T @ projection_TP, dim=1)
