"""What mixtures have in common: what they observe, and weights kept within bounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from moesaic.errors import InputError


@dataclass(frozen=True)
class Observation:
    """What training tells a mixture every now and then."""

    losses: Mapping[str, float]
    """Next-token loss of each domain on its validation blocks, nats per token; no balance loss in it."""
    balance: Mapping[str, float] = field(default_factory=dict)
    """The weighted balance loss of the same forward passes; only `dynamic-paper` looks at it."""


ProbeKind = Literal["gate", "hidden", "text"]


@dataclass(frozen=True)
class Probe:
    """What a pass over a sample of each dataset found, row by row."""

    kind: ProbeKind
    """gate: how many tokens of a row chose each expert; hidden: the row's mean hidden state, of length 1; text: its embedding, of length 1."""
    rows: Mapping[str, np.ndarray]
    """Rows of each dataset [R, L, E] float64: L layers that are read, E experts (or the width of the state or embedding)."""
    seed: int
    """Of resampling; another one for each update."""


class Mixture:
    """Weights by domain that sum to 1; a pure function of its state and what it observes."""

    OBSERVES = False
    """True: wants an Observation every `every` steps, and `reference` to be filled in when it is None."""
    PROBES = False
    """True: looks at a probe of the datasets every `every` steps."""
    every = 0
    """Steps between updates; 0: the weights never change."""

    def __init__(self, weights: Mapping[str, float]):
        self.weights = dict(weights)
        self.reference: dict[str, float] | None = None
        """Losses to compare with; None until the dense parent is measured."""

    def observe(self, seen: Observation) -> None:
        """Change the weights."""

    def wants(self) -> Literal["model", "text"] | None:
        """What the next update looks at: a probe of the model in training, of the text alone, or nothing."""
        return None

    def look(self, probe: Probe | None) -> dict[str, float]:
        """Change the weights after a probe; returns what to log. Only called where PROBES is True."""
        raise NotImplementedError

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


def smoothed(weights: Mapping[str, float], share: float) -> dict[str, float]:
    """(1 - c) w + c / D over the D domains with weight; those at 0 stay at 0. Args: weights: sum to 1. share: c."""
    used = sum(value > 0 for value in weights.values())
    return {name: (1 - share) * value + share / used if value > 0 else 0.0 for name, value in weights.items()}


def exponentiated(logs: Mapping[str, float]) -> dict[str, float]:
    """softmax of log weights; they sum to 1."""
    highest = max(logs.values())
    raw = {name: math.exp(value - highest) for name, value in logs.items()}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}
