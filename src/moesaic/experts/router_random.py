"""Router `random`: normal(0, initializer_range), what LLaMA-MoE starts from."""

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment, generator
from moesaic.experts.features import Activations

NEEDS_ACTIVATIONS = False


def fit(
    activations: Activations | None, assignment: Assignment, hidden: int, ridge: float, seed: int, layer: int
) -> Tensor:
    """Router weights [E, D]."""
    return 0.02 * torch.randn(assignment.routed_EM.shape[0], hidden, generator=generator(seed, layer, 2))
