"""Router losses and load figures of one forward pass.

Shapes: T tokens, E experts, K experts per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.model.families import Routing


@dataclass(frozen=True)
class RouterTerms:
    """Means over the MoE layers; load and entropy are for logging."""

    balance: Tensor
    z: Tensor
    load_LE: Tensor
    """Token slots that each expert of each layer got (counts)."""
    entropy: Tensor
    """Mean entropy of the router's softmax, nats."""


def router_terms(routing: Routing, valid_T: Tensor | None) -> RouterTerms:
    """Balance loss, z-loss, load and entropy.

    Balance: Switch Transformer (arXiv 2101.03961, eq. 4), E * sum_e f_e P_e with f the share of token slots and P the mean router
    probability; 1 when balanced, E when one expert gets everything. z-loss: ST-MoE (arXiv 2202.08906, eq. 5).

    Args:
        valid_T: True for tokens that count (padding never does); None counts all.
    """
    balances, zs, loads, entropies = [], [], [], []
    for layer in sorted(routing.logits):
        logits_TE, index_TK = routing.logits[layer].float(), routing.indices[layer]
        if valid_T is not None:
            logits_TE, index_TK = logits_TE[valid_T], index_TK[valid_T]
        experts = logits_TE.shape[1]
        probability_TE = logits_TE.softmax(dim=1)
        load_E = torch.bincount(index_TK.flatten(), minlength=experts).float()
        balances.append(experts * (load_E / load_E.sum() * probability_TE.mean(dim=0)).sum())
        zs.append(logits_TE.logsumexp(dim=1).square().mean())
        loads.append(load_E)
        entropies.append(-(probability_TE * probability_TE.clamp_min(1e-12).log()).sum(dim=1).mean().detach())
    return RouterTerms(
        torch.stack(balances).mean(),
        torch.stack(zs).mean(),
        torch.stack(loads),
        torch.stack(entropies).mean(),
    )


def load_cv(load_LE: Tensor) -> Tensor:
    """Coefficient of variation of the experts' load, per layer [L]: 0 is perfectly even."""
    return load_LE.std(dim=1, unbiased=False) / load_LE.mean(dim=1).clamp_min(1e-12)
