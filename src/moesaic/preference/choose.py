"""Which right and which wrong answer become a pair: one function per mode.

`rubric` is the paper's (Timo, arXiv 2406.14192, section 3.3): the best-rated right and the best-rated wrong answer, a hard negative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Candidate:
    """One answer to an item."""

    draw: int
    ids: list[int]
    text: str
    finished: bool
    """False: cut off at the most tokens allowed."""
    right: bool
    ratings: list[float | None] = field(default_factory=list)
    """Of the critic; None where its text held no score."""
    logp: float | None = None
    """Summed log-probability under the model that sampled it, nats; only where a mode needs it."""

    @property
    def rating(self) -> float | None:
        """Mean of the ratings that could be read; a rating of 0 counts like any other. None without any."""
        read = [value for value in self.ratings if value is not None]
        return sum(read) / len(read) if read else None


Choice = tuple[Candidate, Candidate] | None
Chooser = Callable[[Sequence[Candidate], Sequence[Candidate], np.random.Generator], Choice]


def random(right: Sequence[Candidate], wrong: Sequence[Candidate], generator: np.random.Generator) -> Choice:
    """Any right answer against any wrong one."""
    return right[int(generator.integers(len(right)))], wrong[int(generator.integers(len(wrong)))]


def rubric(right: Sequence[Candidate], wrong: Sequence[Candidate], generator: np.random.Generator) -> Choice:
    """The highest mean rating on either side; None when no answer of a side has one. Equal ratings: drawn, so that the order says nothing."""
    sides = [[item for item in side if item.rating is not None] for side in (right, wrong)]
    if not all(sides):
        return None
    first, second = (_best(side, [float(item.rating or 0.0) for item in side], generator) for side in sides)
    return first, second


def verifier(
    right: Sequence[Candidate], wrong: Sequence[Candidate], generator: np.random.Generator
) -> Choice:
    """No critic: the right and the wrong answer that the model itself finds likeliest per token, its most confident mistake being the hardest."""
    values = [[_mean_logp(item) for item in side] for side in (right, wrong)]
    return _best(right, values[0], generator), _best(wrong, values[1], generator)


def _best(side: Sequence[Candidate], values: Sequence[float], generator: np.random.Generator) -> Candidate:
    top = [item for item, value in zip(side, values, strict=True) if value == max(values)]
    return top[int(generator.integers(len(top)))]


def _mean_logp(item: Candidate) -> float:
    assert item.logp is not None, "the mode needs the answers' log-probabilities"
    return item.logp / len(item.ids)


METHODS: dict[str, Chooser] = {"random": random, "rubric": rubric, "verifier": verifier}
RATED = {"rubric"}
"""Modes that read the critic's ratings."""
SCORED = {"verifier"}
"""Modes that read the answers' log-probabilities under the model that sampled them."""


def unique(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Every answer once: the same answer drawn twice is neither rated twice nor twice as likely to be chosen."""
    seen: dict[tuple[str, bool], Candidate] = {}
    for item in candidates:
        seen.setdefault((item.text, item.finished), item)
    return list(seen.values())
