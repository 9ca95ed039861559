"""Split `importance`: the neurons that matter most are shared, the others are dealt out so that all experts matter alike.

Source: MoEBERT (Zuo et al., arXiv 2204.07675, section 3.2, eq. 5): neurons are sorted by their importance for the loss (first-order Taylor); the
first s go into every expert, the others are divided among the experts. With unit weights, a neuron in every expert is a shared one, and
it is stored and computed once here. The rest is dealt by rank, forth and back (1 2 3 3 2 1), so that no expert is better than another
before the router has been fitted.
"""

from typing import Any

import torch

from moesaic.experts.assignment import Assignment, Sizes, from_labels
from moesaic.experts.features import Features, Ffn
from moesaic.experts.splits.gradient import normalised

NEEDS = frozenset({"importance"})
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Share the first of the ranking, deal out the rest."""
    mean_F = normalised(features, sizes).mean(dim=0)
    order = mean_F.argsort(descending=True, stable=True)
    shared, rest = order[: sizes.shared], order[sizes.shared :]
    forth = torch.arange(sizes.experts)
    labels = torch.cat([forth, forth.flip(0)]).repeat(len(rest) // sizes.experts + 1)[: len(rest)]
    return from_labels(shared, rest, labels, sizes.experts, mean_F)
