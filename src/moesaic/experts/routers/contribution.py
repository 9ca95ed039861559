"""How much each expert adds to the output of a layer, and the linear router that predicts a score of the experts.

Shapes: T tokens, D model width, E experts, M neurons per expert.
"""

from collections.abc import Callable, Iterable

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


def regress(
    batches: Iterable[Activations],
    score: Callable[[Activations], Tensor],
    ridge: float,
    experts: int,
    hidden: int,
) -> Tensor:
    """Router weights [E, D]: ridge regression of the experts' scores on the layer input, in one pass.

    Each expert's score is divided by its mean over the tokens (so that no expert wins by being large everywhere) and the mean over the
    experts of a token is taken away (top-k and softmax ignore a common shift).

    Args:
        score: batch -> [T, E]. ridge: regulariser, as a share of the mean Gram diagonal.
    """
    gram_DD = torch.zeros(hidden, hidden, dtype=torch.float64)
    product_DE = torch.zeros(hidden, experts, dtype=torch.float64)
    mean_E = torch.zeros(experts, dtype=torch.float64)
    tokens = 0
    for batch in batches:
        score_TE = score(batch)
        gram_DD += batch.x_TD.T @ batch.x_TD
        product_DE += batch.x_TD.T @ score_TE
        mean_E += score_TE.sum(dim=0)
        tokens += len(score_TE)
    product_DE /= (mean_E / tokens).clamp_min(1e-12)
    product_DE -= product_DE.mean(dim=1, keepdim=True)
    gram_DD.diagonal().add_(ridge * gram_DD.diagonal().mean())
    return torch.linalg.solve(gram_DD, product_DE).T.float()
