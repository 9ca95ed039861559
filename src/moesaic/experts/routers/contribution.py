"""How much each expert adds to the output of a layer, for every token.

Shapes: T tokens, E experts, M neurons per expert.
"""

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations, Ffn


def grams(ffn: Ffn, assignment: Assignment) -> Tensor:
    """Products of the down columns of each expert's neurons [E, M, M]: with them a length costs M^2 and not M D."""
    columns = ffn.down_DF[:, assignment.routed_EM].transpose(0, 1)
    return columns.transpose(1, 2) @ columns


def lengths(batch: Activations, assignment: Assignment, grams_EMM: Tensor) -> Tensor:
    """||E_e(x_t)|| [T, E], the length of every expert's output, relative to the residual stream."""
    out = []
    for neurons, gram in zip(assignment.routed_EM, grams_EMM, strict=True):
        h_TM = batch.h_TF[:, neurons]
        out.append(((h_TM @ gram) * h_TM).sum(dim=1).clamp_min(0).sqrt())
    return batch.weigh(torch.stack(out, dim=1))
