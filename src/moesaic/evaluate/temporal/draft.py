"""What a generator returns, and the wrong answers that stand beside the right one.

The wrong answers of a number, time, date or duration x are the other corners of a parallelogram: x + a, x + b and x + a + b, where a and b
are the sizes of two real mistakes, each with a random sign. Whichever corner is right, the four choices have one and the same shape:
nothing in them tells the answer (not the smallest, the median, the one that shares most with the others). One of the mistakes keeps
what a shortcut would compute (the minutes, the day of the month), so that half of the arithmetic leaves two choices.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass


class Redraw(Exception):
    """These random numbers make no valid question; draw again for the same corner."""


class Rng(random.Random):
    """Random numbers of one item. `corner` is drawn once per item and kept over redraws: what is possible may not decide what is right."""

    corner: int = 0
    """0 to 11: corner % 4 is the parallelogram's corner, corner % 3 or corner itself the right one of so many classes."""

    def signs(self) -> tuple[int, int]:
        """Signs of the two mistakes."""
        return (1 if self.corner & 1 else -1), (1 if self.corner & 2 else -1)


@dataclass(frozen=True)
class Draft:
    """A question with its answer and real mistakes."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    key: str
    """What is asked, whatever the wording: the same problem never stands on both sides of the split."""


def corners(
    rng: Rng, value: int, sizes: tuple[int, int], text: Callable[[int], str], modulo: int | None = None
) -> tuple[str, ...]:
    """The three wrong answers of a parallelogram.

    Args:
        value: the right answer. sizes: of the two mistakes, above 0; the signs are the corner's.
        text: writes a value; raises Redraw for one that cannot be. modulo: 1440 for minutes of a day, 7 for days of the week.

    Raises:
        Redraw: two of the four would be equal.
    """
    (first, second), (sign, other) = sizes, rng.signs()
    values = [value, value + sign * first, value + other * second, value + sign * first + other * second]
    if modulo is not None:
        values = [item % modulo for item in values]
    if len(set(values)) < 4:
        raise Redraw
    return tuple(text(item) for item in values[1:])


def above(value: int, least: int, most: int | None = None) -> int:
    """The value. Raises Redraw when it is out of range."""
    if value < least or (most is not None and value > most):
        raise Redraw
    return value
