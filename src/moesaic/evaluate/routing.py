"""Who does the work: load and importance of every expert, per layer and domain.

Shapes: L layers, E experts.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from moesaic.train.balance import load_cv, router_terms


class DomainRouting:
    """Adds up the routing decisions on one domain."""

    def __init__(self, layers: int, experts: int):
        self.slots_LE = np.zeros((layers, experts))
        self.importance_LE = np.zeros((layers, experts))
        self.tokens = 0
        self.entropy = 0.0

    def add(self, routing: Any) -> None:
        """Take in one forward pass."""
        terms = router_terms(routing, None)
        tokens = routing.logits[0].shape[0]
        self.slots_LE += terms.load_LE.double().numpy()
        for layer, weights in routing.weights.items():
            index, flat = (
                routing.indices[layer].flatten().numpy(),
                weights.detach().double().flatten().numpy(),
            )
            self.importance_LE[layer] += np.bincount(index, flat, minlength=self.importance_LE.shape[1])
        self.tokens += tokens
        self.entropy += float(terms.entropy) * tokens

    def load(self) -> np.ndarray:
        """Share of the token slots of each expert [L, E]; rows sum to 1."""
        return self.slots_LE / self.slots_LE.sum(axis=1, keepdims=True)

    def importance(self) -> np.ndarray:
        """Share of the router weight of each expert [L, E]; rows sum to 1."""
        return self.importance_LE / self.importance_LE.sum(axis=1, keepdims=True)

    def cv(self) -> float:
        """Coefficient of variation of the load, mean over layers."""
        import torch

        return float(load_cv(torch.from_numpy(self.slots_LE)).mean())


def total(parts: list[DomainRouting]) -> DomainRouting:
    """All domains together, each weighing by its tokens."""
    out = DomainRouting(*parts[0].slots_LE.shape)
    for part in parts:
        out.slots_LE += part.slots_LE
        out.importance_LE += part.importance_LE
        out.tokens += part.tokens
        out.entropy += part.entropy
    return out


def table(by_domain: dict[str, DomainRouting]) -> pa.Table:
    """domain, layer, expert, load, importance."""
    rows: dict[str, list[Any]] = {"domain": [], "layer": [], "expert": [], "load": [], "importance": []}
    for domain, routing in by_domain.items():
        load, importance = routing.load(), routing.importance()
        for (layer, expert), value in np.ndenumerate(load):
            for key, item in zip(
                rows,
                (domain, layer, expert, round(float(value), 6), round(float(importance[layer, expert]), 6)),
                strict=True,
            ):
                rows[key].append(item)
    return pa.table(rows)
