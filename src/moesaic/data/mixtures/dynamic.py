"""Mixture `dynamic`: more of what is further behind its reference, and `dynamic-paper`, as LLaMA-MoE's code does it.

DoReMi (arXiv 2305.10429, algorithm 1) and Sheared-LLaMA (arXiv 2310.06694, algorithm 1): with the excess loss g_d = loss_d - reference_d of
each domain, w <- softmax(log w + eta g). Gaps that stay multiply up: 0.05 nats held over 80 updates are a factor of 55, and one
domain ends near 1. `dynamic` therefore (a) clips gaps to [0, clip], (b) pulls towards the weights it started from,
log w <- (1 - pull) log w + pull log w_0 + eta g, whose fixed point w_0 exp(eta g / pull) is bounded, and (c) keeps every domain between a floor
and a ceiling.
"""

import math
from collections.abc import Mapping
from typing import Any

from moesaic.data.mixtures import prior, references
from moesaic.data.mixtures.base import Mixture, Observation, bounded, smoothed
from moesaic.errors import InputError


class Dynamic(Mixture):
    """Exponentiated gradient on the excess loss, bounded."""

    OBSERVES = True

    def __init__(self, settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]):
        start = prior.weights(settings["weights"], sizes, like)
        super().__init__(self.fit(start, settings))
        self.settings, self.start = settings, dict(self.weights)
        self.every = settings["every"]
        self.reference = references.losses(settings["reference"], sorted(self.weights), like)
        self.updates = 0

    def observe(self, seen: Observation) -> None:
        """One update. Raises InputError when a loss is not finite."""
        assert self.reference is not None, "the reference losses are not measured yet"
        wrong = [name for name, loss in seen.losses.items() if not math.isfinite(loss)]
        if wrong:
            raise InputError(
                f"mixture: the validation loss of {wrong[0]} is {seen.losses[wrong[0]]}; training has diverged"
            )
        gaps = {name: seen.losses[name] - self.reference[name] for name in self.weights}
        used = {name: value for name, value in self.weights.items() if value > 0}
        logs = {name: self.score(name, gaps[name], seen) for name in used}
        highest = max(logs.values())
        raw = {name: math.exp(logs[name] - highest) if name in logs else 0.0 for name in self.weights}
        total = sum(raw.values())
        self.weights = self.fit({name: value / total for name, value in raw.items()}, self.settings)
        self.updates += 1

    def score(self, name: str, gap: float, seen: Observation) -> float:
        """log of the domain's new weight, but for a constant."""
        pull = self.settings["pull"]
        moved = self.settings["step_size"] * min(max(gap, 0.0), self.settings["clip"])
        return (1 - pull) * math.log(self.weights[name]) + pull * math.log(self.start[name]) + moved

    @staticmethod
    def fit(weights: Mapping[str, float], settings: Mapping[str, Any]) -> dict[str, float]:
        """The last step of an update."""
        return bounded(weights, settings["floor"], settings["ceiling"])

    def state(self) -> dict[str, Any]:
        return super().state() | {"reference": self.reference, "updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.reference, self.updates = state["reference"], int(state["updates"])


class DynamicPaper(Dynamic):
    """LLaMA-MoE's code: the balance loss is in the evaluation loss, gaps may be negative, no pull; then (1 - c) w + c / D."""

    def score(self, name: str, gap: float, seen: Observation) -> float:
        return math.log(self.weights[name]) + self.settings["step_size"] * (gap + seen.balance.get(name, 0.0))

    @staticmethod
    def fit(weights: Mapping[str, float], settings: Mapping[str, Any]) -> dict[str, float]:
        return smoothed(weights, settings["smoothing"])
