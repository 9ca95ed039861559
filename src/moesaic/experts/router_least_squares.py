"""Router `least-squares`: predict each expert's contribution from the layer input, in closed form.

Target: the length of expert e's output, ||E_e(x)||, divided by its mean over the calibration tokens (so that no expert wins by
being large everywhere) and shifted to mean 0 over the experts of a token (top-k and softmax ignore a common shift).
W = (X'X + ridge * mean diag(X'X) * I)^-1 X'Z. Linear, without bias: every stock top-k router expresses it.
"""

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations

NEEDS_ACTIVATIONS = True


def fit(
    activations: Activations | None, assignment: Assignment, hidden: int, ridge: float, seed: int, layer: int
) -> Tensor:
    """Router weights [E, D]."""
    assert activations is not None
    x_TD = activations.x_TD.double()
    target_TE = contributions(activations, assignment).double()
    target_TE = target_TE / target_TE.mean(dim=0).clamp_min(1e-12)
    target_TE = target_TE - target_TE.mean(dim=1, keepdim=True)
    gram_DD = x_TD.T @ x_TD
    gram_DD.diagonal().add_(ridge * gram_DD.diagonal().mean())
    return torch.linalg.solve(gram_DD, x_TD.T @ target_TE).T.float()


def contributions(activations: Activations, assignment: Assignment) -> Tensor:
    """Length of every expert's output for every token, [T, E]."""
    ffn = activations.ffn
    return torch.stack(
        [
            (activations.h_TF[:, neurons] @ ffn.down_DF[:, neurons].T).norm(dim=1)
            for neurons in assignment.routed_EM
        ],
        dim=1,
    )
