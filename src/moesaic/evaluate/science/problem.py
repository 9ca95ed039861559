"""What a question family is made of: variables and their ranges, a solution in steps, and the mistakes that people make."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from astropy import units as u

from moesaic.evaluate.science.physics import FWHM, Quantity

Steps = list[tuple[str, Quantity]]
"""(formula, its value) in order; the last one is the answer."""
Solve = Callable[..., Steps]
Given = dict[str, Quantity]
Mistake = Callable[[Solve, Given], Quantity]


@functools.cache
def unit(name: str) -> Any:
    """astropy's unit of this name; reading a name costs more than a conversion."""
    return u.Unit(name)


@dataclass(frozen=True)
class Form:
    """One way to state a variable."""

    text: str
    symbol: str
    unit: str
    kind: str = ""
    """`fwhm`: the full width of a Gaussian whose sigma is the variable."""

    @property
    def scale(self) -> float:
        """The variable over what is stated."""
        return 1 / FWHM if self.kind == "fwhm" else 1.0

    def true(self, stated: float) -> Quantity:
        """The variable, from the stated number."""
        return stated * self.scale * unit(self.unit)

    def stated(self, true: Quantity) -> float:
        """The number to state."""
        return float(true.to_value(unit(self.unit)) / self.scale)


@dataclass(frozen=True)
class Variable:
    """A physical quantity. The first form's unit is that of the ranges."""

    name: str
    text: str
    symbol: str
    unit: str
    low: float = 0.0
    high: float = 0.0
    outside: tuple[float, float] | None = None
    """Range of the out-of-range split; None: the decade below or the decade above."""
    others: tuple[str, ...] = ()
    """Units of the out-of-unit split."""
    full_width: tuple[str, str] | None = None
    """Text and symbol of its full width at half maximum, for the out-of-unit split."""

    @property
    def form(self) -> Form:
        """How it is stated in all splits but out-of-unit."""
        return Form(self.text, self.symbol, self.unit)

    @property
    def restated(self) -> list[Form]:
        """The other ways to state it, as an input."""
        found = [Form(self.text, self.symbol, unit) for unit in self.others]
        if self.full_width:
            found.append(Form(*self.full_width, self.unit, "fwhm"))
        return found


@dataclass(frozen=True)
class Problem:
    """A question with `variables` given."""

    context: str
    """What is observed, which estimator and which constants are to be used."""
    variables: tuple[Variable, ...]
    answer: Variable
    solve: Solve
    """Quantities by variable name -> Steps."""
    mistakes: Mapping[str, Mistake]


@dataclass(frozen=True)
class Inverse:
    """The forward problem with its answer given and one of its variables asked for."""

    hidden: str
    solve: Solve
    mistakes: Mapping[str, Mistake]


@dataclass(frozen=True)
class Family:
    """One relation, asked forwards, backwards and as part of a chain."""

    name: str
    source: str
    formula: str
    forward: Problem
    inverse: Inverse
    chain: Problem
    version: int = 1
    """Raise it when texts, ranges or constants change: it is part of the item's id."""


def answer(solve: Solve, given: Mapping[str, Any]) -> Quantity:
    """The last step."""
    return solve(**given)[-1][1]


def times(factor: float) -> Mistake:
    """The right answer, off by a factor."""
    return lambda solve, given: factor * answer(solve, given)


def change(name: str, how: Callable[[Quantity], Quantity]) -> Mistake:
    """The right formula with a wrong input."""
    return lambda solve, given: answer(solve, given | {name: how(given[name])})


def instead(wrong: Callable[..., Quantity]) -> Mistake:
    """Another formula."""
    return lambda solve, given: wrong(**given)


DEGREES: dict[str, Mistake] = {"degrees for radians": change("phi", lambda phi: phi.to_value(u.deg) * u.rad)}
"""The polarisation angles' dispersion put into the formula in degrees."""
WIDTH: dict[str, Mistake] = {"FWHM for sigma": change("sv", lambda sv: FWHM * sv)}
"""The line's full width taken for its dispersion."""
