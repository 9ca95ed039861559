"""Split `gradient`: each data cluster gets the neurons that matter most for its text.

Source: LLaMA-MoE (arXiv 2406.16554), "Independent (Gradient)": importance |h * dL/dh| (first-order Taylor, SNIP), one vector per
cluster of the calibration text; repeatedly the highest-scored free neuron goes to its expert until that is full. Vectors are divided by
their mean, so that a cluster with a larger loss does not win everywhere. Shared neurons: the highest mean over the clusters.
"""

from typing import Any

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment, Sizes, from_labels
from moesaic.experts.features import Features, Ffn

NEEDS = frozenset({"importance"})
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Share the most important neurons, give the rest greedily."""
    importance_EF = normalised(features, sizes)
    mean_F = importance_EF.mean(dim=0)
    order = mean_F.argsort(descending=True, stable=True)
    shared, rest = order[: sizes.shared], order[sizes.shared :].sort().values
    return from_labels(shared, rest, greedy(importance_EF[:, rest]), sizes.experts, mean_F)


def normalised(features: Features | None, sizes: Sizes) -> Tensor:
    """Importance vectors, one per expert, each of mean 1 [E, F]."""
    assert features is not None
    assert features.importance_CF is not None
    found = features.importance_CF
    assert found.shape[0] == sizes.experts, f"{found.shape[0]} importance vectors for {sizes.experts} experts"
    return found / found.mean(dim=1, keepdim=True).clamp_min(1e-30)


def greedy(score_ER: Tensor) -> Tensor:
    """Expert of each neuron [R]: the globally highest score first, experts of equal size."""
    experts, neurons = score_ER.shape
    room = [neurons // experts] * experts
    labels = torch.full((neurons,), -1, dtype=torch.long)
    taken = [False] * neurons
    for flat in score_ER.flatten().argsort(descending=True, stable=True).tolist():
        expert, neuron = divmod(flat, neurons)
        if room[expert] and not taken[neuron]:
            labels[neuron], taken[neuron] = expert, True
            room[expert] -= 1
    return labels
