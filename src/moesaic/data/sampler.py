"""Which sample comes next: a deterministic stream of (domain, row) whose whole state is a few numbers per domain."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Weighted(Protocol):
    """A mixture: weights by domain that sum to 1."""

    weights: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """One drawn sample."""

    domain: str
    row: int


def in_turn(sizes: Mapping[str, int], count: int) -> list[Sample]:
    """The first rows of all domains, one of each in turn: a small even look at the data. Args: sizes: rows by domain."""
    names = sorted(sizes)
    found = (Sample(name, row) for row in range(max(sizes.values())) for name in names if row < sizes[name])
    return list(itertools.islice(found, count))


class Sampler:
    """Smooth weighted round-robin over the domains, a fresh permutation of a domain's rows in each of its epochs.

    Each draw gives every domain its weight as credit and takes the domain with most credit, so counts follow the weights as
    closely as whole numbers can, also in a short run; no domain's end stops the stream.
    """

    def __init__(
        self, mixture: Weighted, sizes: Mapping[str, int], seed: int, max_epochs: float | None = None
    ):
        """Args: max_epochs: a domain that was gone through so often is passed over, unless all were."""
        self.mixture, self.sizes, self.seed = mixture, dict(sorted(sizes.items())), seed
        self.max_epochs = max_epochs
        self.credit = dict.fromkeys(self.sizes, 0.0)
        self.drawn = dict.fromkeys(self.sizes, 0)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def next(self, count: int) -> list[Sample]:
        """Draw the next `count` samples."""
        return [self._draw() for _ in range(count)]

    def epochs(self) -> dict[str, float]:
        """How often each domain has been gone through."""
        return {name: self.drawn[name] / size for name, size in self.sizes.items()}

    def state(self) -> dict[str, Any]:
        """JSON-able; floats survive JSON exactly."""
        return {"credit": dict(self.credit), "drawn": dict(self.drawn)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        assert set(state["drawn"]) == set(self.sizes), "the checkpoint's domains differ from the data's"
        self.credit, self.drawn = dict(state["credit"]), dict(state["drawn"])

    def open(self) -> list[str]:
        """Domains that may be drawn: below the cap on epochs; all of them when no domain with weight is left."""
        if self.max_epochs is None:
            return list(self.sizes)
        left = [name for name, size in self.sizes.items() if self.drawn[name] < self.max_epochs * size]
        return left if any(self.mixture.weights[name] > 0 for name in left) else list(self.sizes)

    def _draw(self) -> Sample:
        names = self.open()
        total = sum(self.mixture.weights[name] for name in names)
        for name in names:
            self.credit[name] += self.mixture.weights[name] / total
        chosen = max(names, key=lambda name: self.credit[name])
        self.credit[chosen] -= 1.0
        epoch, position = divmod(self.drawn[chosen], self.sizes[chosen])
        self.drawn[chosen] += 1
        return Sample(chosen, int(self._order(chosen, epoch)[position]))

    def _order(self, name: str, epoch: int) -> np.ndarray:
        if self._orders.get(name, (-1, None))[0] != epoch:
            key = [self.seed, epoch, *name.encode()]
            self._orders[name] = (epoch, np.random.default_rng(key).permutation(self.sizes[name]))
        return self._orders[name][1]
