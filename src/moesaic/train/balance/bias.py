"""Balancing without a loss, `bias`: a bias per expert that takes part in the choice only (Wang et al., arXiv 2408.15664; DeepSeek-V3).

After every optimizer step b_e += rate * sign(mean load - load_e), with the load of all tokens of the step on all ranks. In transformers the
bias is a buffer (`e_score_correction_bias`) that nothing updates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import InputError


def loss(decision: Any) -> Tensor:
    """None: nothing disturbs the language-model loss."""
    return torch.zeros((), device=decision.logits_TE.device)


def check(routers: Sequence[Any]) -> None:
    """Raises InputError for an architecture whose routers have no such bias."""
    if not all(hasattr(router, "e_score_correction_bias") for router in routers):
        raise InputError(
            "router.balance: bias needs an architecture whose router has a bias; set experts.family: glm4_moe"
        )


@torch.no_grad()
def update(routers: Sequence[Any], load_LE: Tensor, rate: float) -> None:
    """One step of every layer's bias. Args: load_LE: token slots of the whole step, over all ranks."""
    for router, load_E in zip(routers, load_LE, strict=True):
        bias_E = router.e_score_correction_bias
        bias_E += rate * torch.sign(load_E.mean() - load_E).to(bias_E)
