"""Split `sequential`: neurons in the order in which the checkpoint has them, the first ones shared.

Source: LLaMA-MoE v2 (arXiv 2411.15708), its plain conversion. A control: no statistics, no random numbers.
"""

from typing import Any

import torch

from moesaic.experts.assignment import Assignment, Sizes
from moesaic.experts.features import Features, Ffn

NEEDS: frozenset[str] = frozenset()
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Cut the neurons in order."""
    order = torch.arange(sizes.width)
    return Assignment(
        order[: sizes.shared], order[sizes.shared :].reshape(sizes.experts, -1), torch.zeros(sizes.width)
    )
