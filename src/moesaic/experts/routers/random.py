"""Router `random`: normal(0, 0.02), what LLaMA-MoE starts from. Pieces of one copy of the FFN share a row (virtual groups)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from moesaic.experts.assignment import Assignment, generator
from moesaic.experts.features import Activations, Ffn

NEEDS_ACTIVATIONS = False
STANDARD_DEVIATION = 0.02


def fit(
    ffn: Ffn,
    batches: Iterable[Activations],
    assignment: Assignment,
    options: dict[str, Any],
    seed: int,
    layer: int,
) -> Tensor:
    """Router weights [E, D]."""
    experts, hidden = assignment.routed_EM.shape[0], ffn.gate_FD.shape[1]
    rows_ED = STANDARD_DEVIATION * torch.randn(experts, hidden, generator=generator(seed, layer, 2))
    return rows_ED if assignment.copy_E is None else rows_ED[assignment.copy_E]
