"""Split `random`: a uniformly random partition of the neurons.

Source: LLaMA-MoE (arXiv 2406.16554), "Independent (Random)", the split of its released models; seeded here.
"""

import torch

from moesaic.experts.assignment import Assignment, generator
from moesaic.experts.features import Activations

NEEDS_ACTIVATIONS = False


def split(
    activations: Activations | None, width: int, shared: int, experts: int, seed: int, layer: int
) -> Assignment:
    """Assign `width` neurons at random: `shared` always on, the rest in equal experts."""
    order = torch.randperm(width, generator=generator(seed, layer, 0))
    return Assignment(
        order[:shared].sort().values,
        order[shared:].reshape(experts, -1).sort(dim=1).values,
        torch.zeros(width),
    )
