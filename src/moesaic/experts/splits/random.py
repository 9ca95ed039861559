"""Split `random`: a uniformly random partition of the neurons.

Source: LLaMA-MoE (arXiv 2406.16554), "Independent (Random)", the split of its released models; seeded here.
"""

from typing import Any

import torch

from moesaic.experts.assignment import Assignment, Sizes, generator
from moesaic.experts.features import Features, Ffn

NEEDS: frozenset[str] = frozenset()
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Assign the neurons at random: `shared` always on, the rest in equal experts."""
    order = torch.randperm(sizes.width, generator=generator(seed, layer, 0))
    return Assignment(
        order[: sizes.shared].sort().values,
        order[sizes.shared :].reshape(sizes.experts, -1).sort(dim=1).values,
        torch.zeros(sizes.width),
    )
