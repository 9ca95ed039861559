"""Split `copy`: sparse upcycling; every expert is a copy of the FFN, or of a piece of it. The model grows.

Source: sparse upcycling (arXiv 2212.05055). With `granularity` G > 1: virtual groups (NVIDIA, arXiv 2410.07524): each copy is cut into G
experts of F / G neurons that share one router row, so that with per_token = G one whole copy runs and the model starts as the parent.
"""

from typing import Any

import torch

from moesaic.experts.assignment import Assignment, Sizes
from moesaic.experts.features import Features, Ffn

NEEDS: frozenset[str] = frozenset()
OVERLAP = True


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Cut the neurons that are not shared into G pieces, in order, and repeat them for each copy."""
    order = torch.arange(sizes.width)
    pieces_GM = order[sizes.shared :].reshape(sizes.granularity, sizes.neurons)
    copies = torch.arange(sizes.copies).repeat_interleave(sizes.granularity)
    return Assignment(
        order[: sizes.shared], pieces_GM.repeat(sizes.copies, 1), torch.zeros(sizes.width), copies
    )
