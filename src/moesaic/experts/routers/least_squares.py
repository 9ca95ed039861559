"""Router `least-squares`: predict each expert's contribution from the layer input, in closed form.

Target: the length of expert e's output, ||E_e(x)||, divided by its mean over the calibration tokens (so that no expert wins by
being large everywhere) and shifted to mean 0 over the experts of a token (top-k and softmax ignore a common shift).
W = (X'X + ridge * mean diag(X'X) * I)^-1 X'Z. Linear, without bias: every stock top-k router expresses it.
"""

from collections.abc import Iterable
from typing import Any

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
    grams_EMM = contribution.grams(ffn, assignment)
    return contribution.regress(
        batches,
        lambda batch: contribution.lengths(batch, assignment, grams_EMM),
        options["router_ridge"],
        assignment.routed_EM.shape[0],
        ffn.gate_FD.shape[1],
    )
