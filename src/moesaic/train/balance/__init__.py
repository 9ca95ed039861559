"""Balancing methods by name, and the router losses and load figures of one forward pass.

Shapes: T tokens, L MoE layers, E experts, K experts per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.train.balance import bias, importance_load, switch
from moesaic.train.balance.base import Decision

METHODS: dict[str, Callable[[Decision], Tensor]] = {
    "switch": switch.loss,
    "importance-load": importance_load.loss,
    "bias": bias.loss,
}


@dataclass(frozen=True)
class RouterTerms:
    """Means over the MoE layers; load and entropy are for logging."""

    balance: Tensor
    z: Tensor
    load_LE: Tensor
    """Token slots that each expert of each layer got (counts)."""
    entropy: Tensor
    """Mean entropy of the router's distribution, nats."""


def router_terms(decisions: Sequence[Decision], method: str = "switch") -> RouterTerms:
    """Balance loss, z-loss (ST-MoE, arXiv 2202.08906, eq. 5), load and entropy of the layers."""
    balances = [METHODS[method](decision) for decision in decisions]
    zs = [decision.logits_TE.logsumexp(dim=1).square().mean() for decision in decisions]
    with torch.no_grad():
        entropies = [
            -(p * p.clamp_min(1e-12).log()).sum(dim=1).mean() for p in (d.probability_TE for d in decisions)
        ]
    return RouterTerms(
        torch.stack(balances).mean(),
        torch.stack(zs).mean(),
        torch.stack([decision.load_E for decision in decisions]),
        torch.stack(entropies).mean(),
    )


def load_cv(load_LE: Tensor) -> Tensor:
    """Coefficient of variation of the experts' load, per layer [L]: 0 is perfectly even."""
    return load_LE.std(dim=1, unbiased=False) / load_LE.mean(dim=1).clamp_min(1e-12)
