"""Router `centroids`: an expert's row is the mean input of the tokens on which it contributes most, less the mean of all tokens.

Source: LLaMA-MoE v2 (arXiv 2411.15708) routes by k-means centres of the layer's inputs; here the clusters are those of the split.
Rows are scaled so that logits have unit variance over the calibration tokens.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations, Ffn
from moesaic.experts.routers import contribution

NEEDS_ACTIVATIONS = True


def fit(
    ffn: Ffn,
    batches: Iterable[Activations],
    assignment: Assignment,
    options: dict[str, Any],
    seed: int,
    layer: int,
) -> Tensor:
    """Router weights [E, D]; three passes over the batches, of which none is kept (the first for the experts' mean contribution)."""
    experts = assignment.routed_EM.shape[0]
    grams_EMM = contribution.grams(ffn, assignment)
    lengths = [contribution.lengths(batch, assignment, grams_EMM) for batch in batches]
    mean_E = torch.cat(lengths).mean(dim=0).clamp_min(1e-12)
    sums_ED, counts_E = torch.zeros(experts, ffn.gate_FD.shape[1]), torch.zeros(experts)
    square = 0.0
    for batch, length_TE in zip(batches, lengths, strict=True):
        best_T = (length_TE / mean_E).argmax(dim=1)
        sums_ED.index_add_(0, best_T, batch.x_TD)
        counts_E += torch.bincount(best_T, minlength=experts)
    tokens = counts_E.sum()
    rows_ED = sums_ED / counts_E.clamp_min(1)[:, None] - sums_ED.sum(dim=0) / tokens
    for batch in batches:
        square += float((batch.x_TD @ rows_ED.T).var(dim=1, unbiased=False).sum())
    return rows_ED / max(square / float(tokens), 1e-12) ** 0.5
