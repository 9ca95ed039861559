"""Router `least-squares`: predict each expert's contribution from the layer input, in closed form.

Target: the length of expert e's output, ||E_e(x)||, divided by its mean over the calibration tokens (so that no expert wins by
being large everywhere) and shifted to mean 0 over the experts of a token (top-k and softmax ignore a common shift).
W = (X'X + ridge * mean diag(X'X) * I)^-1 X'Z. Linear, without bias: every stock top-k router expresses it.
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
    """Router weights [E, D]; one pass over the batches."""
    experts, hidden = assignment.routed_EM.shape[0], ffn.gate_FD.shape[1]
    grams_EMM = contribution.grams(ffn, assignment)
    gram_DD = torch.zeros(hidden, hidden, dtype=torch.float64)
    product_DE = torch.zeros(hidden, experts, dtype=torch.float64)
    mean_E = torch.zeros(experts, dtype=torch.float64)
    tokens = 0
    for batch in batches:
        length_TE = contribution.lengths(batch, assignment, grams_EMM)
        gram_DD += batch.x_TD.T @ batch.x_TD
        product_DE += batch.x_TD.T @ length_TE
        mean_E += length_TE.sum(dim=0)
        tokens += len(length_TE)
    product_DE /= (mean_E / tokens).clamp_min(1e-12)
    product_DE -= product_DE.mean(dim=1, keepdim=True)
    gram_DD.diagonal().add_(options["router_ridge"] * gram_DD.diagonal().mean())
    return torch.linalg.solve(gram_DD, product_DE).T.float()
