"""Split `sharing-inner`: experts overlap; each holds the neurons that matter most for its data cluster.

Source: LLaMA-MoE (arXiv 2406.16554), "Sharing (Inner)": expert e = the M highest of importance vector e. There M * E equals the FFN
width, so every neuron that two experts share pushes another one out of the model for good. Here no neuron is lost: M is larger by
`sharing.overlap`, and a neuron that no expert chose takes the place of the least important one that several experts hold.
"""

from typing import Any

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment, Sizes
from moesaic.experts.features import Features, Ffn
from moesaic.experts.splits.gradient import normalised

NEEDS = frozenset({"importance"})
OVERLAP = True


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Top M of each vector, then make room for what none chose."""
    importance_EF = normalised(features, sizes)
    mean_F = importance_EF.mean(dim=0)
    shared = mean_F.argsort(descending=True, stable=True)[: sizes.shared].sort().values
    free_EF = importance_EF.clone()
    free_EF[:, shared] = -1.0
    chosen_EM = free_EF.topk(sizes.neurons, dim=1).indices
    held_EF = torch.zeros(importance_EF.shape, dtype=torch.bool).scatter_(1, chosen_EM, True)
    allowed_F = torch.ones(sizes.width, dtype=torch.bool)
    allowed_F[shared] = False
    cover(held_EF, free_EF, allowed_F)
    routed = torch.stack([row.nonzero()[:, 0] for row in held_EF])
    return Assignment(shared, routed, mean_F)


def cover(held_EF: Tensor, score_EF: Tensor, allowed_F: Tensor) -> None:
    """Give every allowed neuron that no expert holds the place of a spare one, in the expert where it scores highest (in place)."""
    count_F = held_EF.sum(dim=0)
    missing = ((count_F == 0) & allowed_F).nonzero()[:, 0]
    missing = missing[score_EF[:, missing].amax(dim=0).argsort(descending=True, stable=True)]
    for neuron in missing.tolist():
        for expert in score_EF[:, neuron].argsort(descending=True, stable=True).tolist():
            spare = (held_EF[expert] & (count_F > 1)).nonzero()[:, 0]
            if spare.numel():
                out = spare[score_EF[expert, spare].argmin()]
                held_EF[expert, out], held_EF[expert, neuron] = False, True
                count_F[out] -= 1
                count_F[neuron] = 1
                break
        else:
            raise AssertionError("fewer places than neurons")
