"""Split `drop`: sparse upcycling with part of every copy drawn anew, so that copies become different.

Source: Drop-Upcycling (arXiv 2502.19261): in each expert a share r of the intermediate neurons gets new weights, normal with the mean
and standard deviation of the weights it replaces (gate, up and down apart); r = 0.5 is the paper's.
"""

from typing import Any

import torch

from moesaic.experts.assignment import Assignment, Sizes, generator
from moesaic.experts.features import Features, Ffn
from moesaic.experts.splits import copy

NEEDS: frozenset[str] = frozenset()
OVERLAP = True


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """As `copy`, with a random choice of the neurons to draw anew in each expert."""
    copied = copy.split(ffn, features, sizes, options, seed, layer)
    fresh = torch.zeros(sizes.experts, sizes.neurons, dtype=torch.bool)
    stream = generator(seed, layer, 5)
    for expert in range(sizes.experts):
        chosen = torch.randperm(sizes.neurons, generator=stream)[
            : round(options["drop"]["ratio"] * sizes.neurons)
        ]
        fresh[expert, chosen] = True
    return Assignment(copied.shared_S, copied.routed_EM, copied.score_F, copied.copy_E, fresh)
