"""What mixtures have in common: what they observe, and weights kept within bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moesaic.errors import InputError


@dataclass(frozen=True)
class Observation:
    """What training tells a mixture every now and then."""

    losses: Mapping[str, float]
    """Next-token loss of each domain on its validation blocks, nats per token; no balance loss in it."""
    balance: Mapping[str, float] = field(default_factory=dict)
    """The weighted balance loss of the same forward passes; only `dynamic-paper` looks at it."""


class Mixture:
    """Weights by domain that sum to 1; a pure function of its state and what it observes."""

    OBSERVES = False
    """True: wants an Observation every `every` steps, and `reference` to be filled in when it is None."""
    every = 0

    def __init__(self, weights: Mapping[str, float]):
        self.weights = dict(weights)
        self.reference: dict[str, float] | None = None
        """Losses to compare with; None until the dense parent is measured."""

    def observe(self, seen: Observation) -> None:
        """Change the weights."""

    def state(self) -> dict[str, Any]:
        """JSON-able; all there is to resume (floats survive JSON exactly)."""
        return {"weights": dict(self.weights)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.weights = dict(state["weights"])


def bounded(weights: Mapping[str, float], floor: float, ceiling: float) -> dict[str, float]:
    """The weights, scaled by a common factor and clipped to [floor, ceiling], so that they sum to 1.

    Domains at 0 stay at 0 (they were switched off). Raises InputError when no weights fit the bounds.
    """
    used = [name for name, value in weights.items() if value > 0]
    count = len(used)
    if floor * count > 1 + 1e-9:
        raise InputError(
            f"mixture.floor: {floor} for each of {count} domains is more than 1; take at most {1 / count:.3f}"
        )
    if ceiling * count < 1 - 1e-9:
        raise InputError(
            f"mixture.ceiling: {ceiling} for each of {count} domains is less than 1; take at least {1 / count:.3f}"
        )
    low, high = 0.0, 1.0 / min(weights[name] for name in used)
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(max(middle * weights[name], floor), ceiling) for name in used)
        low, high = (middle, high) if total < 1 else (low, middle)
    out = {
        name: min(max(high * weights[name], floor), ceiling) if weights[name] > 0 else 0.0 for name in weights
    }
    total = sum(out.values())
    return {name: value / total for name, value in out.items()}
