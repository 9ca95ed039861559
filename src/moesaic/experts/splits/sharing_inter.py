"""Split `sharing-inter`: neurons that many data clusters need become the shared (residual) expert, the rest are given greedily.

Source: LLaMA-MoE (arXiv 2406.16554), "Sharing (Inter)": repeatedly take the M highest neurons of each importance vector, and move the
ones that most vectors have in common to the shared pool, until that holds `shared` neurons.
"""

from typing import Any

import torch

from moesaic.experts.assignment import Assignment, Sizes, from_labels
from moesaic.experts.features import Features, Ffn
from moesaic.experts.splits.gradient import greedy, normalised

NEEDS = frozenset({"importance"})
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Pool the common neurons, give the rest as `gradient` does."""
    importance_EF = normalised(features, sizes)
    mean_F = importance_EF.mean(dim=0)
    free_EF = importance_EF.clone()
    pool: list[int] = []
    while len(pool) < sizes.shared:
        top_EM = free_EF.topk(sizes.neurons, dim=1).indices
        count_F = torch.bincount(top_EM.flatten(), minlength=sizes.width)
        count_F[pool] = 0
        if count_F.max() < 2:  # nothing in common is left: the most important ones on average
            count_F = torch.ones(sizes.width, dtype=torch.long)
            count_F[pool] = 0
        common = (count_F == count_F.max()).nonzero()[:, 0]
        common = common[mean_F[common].argsort(descending=True, stable=True)]
        pool += common[: sizes.shared - len(pool)].tolist()
        free_EF[:, pool] = -1.0
    shared = torch.tensor(sorted(pool), dtype=torch.long)
    kept = torch.ones(sizes.width, dtype=torch.bool)
    kept[shared] = False
    rest = kept.nonzero()[:, 0]
    return from_labels(shared, rest, greedy(importance_EF[:, rest]), sizes.experts, mean_F)
