"""The multiple-choice twin: three distractors that real mistakes lead to, arranged so that the look of the numbers gives nothing away."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from moesaic.evaluate.science.physics import Quantity
from moesaic.evaluate.science.problem import Given, Mistake, Problem, Steps
from moesaic.evaluate.science.problem import unit as named
from moesaic.evaluate.science.text import number

APART = 1.1
"""Options (and mistakes and the right answer) differ by this factor at least."""
Wrong = tuple[float, str]
"""A wrong answer and the mistake that leads to it."""


@dataclass(frozen=True)
class Options:
    """Texts of the four options, the index of the right one, and what leads to each (empty for the right one)."""

    texts: list[str]
    gold: int
    mistakes: list[str]


def distinct(values: list[float]) -> bool:
    """True when every two values are a factor of APART apart."""
    return all(abs(math.log(a / b)) > math.log(APART) for a, b in itertools.combinations(values, 2))


def wrong_answers(
    problem: Problem, mistakes: dict[str, Mistake], given: Given, unit: str, gold: float
) -> list[Wrong] | None:
    """What each mistake gives, in the answer's unit; None when one comes so close to the right answer that it cannot be told from it."""
    right = problem.solve(**given)

    def solve(**changed: Quantity) -> Steps:
        """Most mistakes start from the right answer: it is computed once."""
        return (
            right
            if all(changed[name] is value for name, value in given.items())
            else problem.solve(**changed)
        )

    found = [(float(mistake(solve, given).to_value(named(unit))), name) for name, mistake in mistakes.items()]
    if unit:
        found += [(gold * 1e3, "prefix 1000 too large"), (gold / 1e3, "prefix 1000 too small")]
    found = [(value, name) for value, name in found if math.isfinite(value) and value > 0]
    return found if all(distinct([value, gold]) for value, _ in found) else None


def choose(wrong: list[Wrong], gold: float, unit: str, rng: Random) -> Options | None:
    """Pick three distractors.

    The right answer is the smallest, second, third or largest equally often, as far as the mistakes allow.

    Returns:
        None when too few mistakes give different answers.
    """
    by_rank: dict[int, list[list[tuple[Wrong, ...]]]] = {}
    for layout in _layouts(wrong, gold):
        found: dict[int, list[tuple[Wrong, ...]]] = {}
        for three in layout:
            if distinct([gold, *(value for value, _ in three)]):
                found.setdefault(sum(value < gold for value, _ in three), []).append(three)
        for rank, threes in found.items():
            by_rank.setdefault(rank, []).append(threes)
    if not by_rank:
        return None
    picked = [*rng.choice(rng.choice(by_rank[rng.choice(sorted(by_rank))])), (gold, "")]
    rng.shuffle(picked)
    texts = [f"{number(value)} {unit}".strip() for value, _ in picked]
    names = [name for _, name in picked]
    return Options(texts, names.index(""), names)


def _layouts(wrong: list[Wrong], gold: float) -> Iterator[list[tuple[Wrong, ...]]]:
    """Three mistakes in the formula; or a wrong power of ten, a mistake, and both together.

    A power of ten keeps the digits: alone, it would make the right answer the one whose digits come twice.
    """
    powers = [
        item for item in wrong if abs(math.log10(item[0] / gold) - round(math.log10(item[0] / gold))) < 1e-6
    ]
    others = [item for item in wrong if item not in powers]
    yield list(itertools.combinations(others, 3))
    yield [
        ((shifted, power), (value, name), (value * shifted / gold, f"{name}; {power}"))
        for (shifted, power), (value, name) in itertools.product(powers, others)
    ]
