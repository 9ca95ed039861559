"""Draw items. The same seed gives the same items on every machine: Python's own generator, seeded by strings, and no other source of chance."""

import math
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal, get_args

from astropy import units as u

from moesaic.evaluate.science import choices, text
from moesaic.evaluate.science.families import FAMILIES
from moesaic.evaluate.science.physics import Quantity
from moesaic.evaluate.science.problem import Family, Form, Given, Problem, Variable, unit

Split = Literal["id", "range", "unit", "inverse", "chain"]
SPLITS: tuple[Split, ...] = get_args(Split)
ATTEMPTS = 2000
DIGITS_KEPT = 12
"""Of gold values in files: what is beyond may differ between machines."""


@dataclass(frozen=True)
class Input:
    """One given quantity, as printed."""

    name: str
    value: float
    unit: str
    kind: str
    """`fwhm`: the full width of a Gaussian whose sigma the formula needs."""


@dataclass(frozen=True)
class Item:
    """A question with its gold answer."""

    id: str
    family: str
    split: str
    question: str
    answer: str
    """Number and unit, four digits."""
    value: float
    """Gold, in `unit`."""
    unit: str
    inputs: list[Input]
    formula: str
    steps: list[str]
    choices: list[str]
    gold: int
    """Index of the right choice."""
    mistakes: list[str]
    """What leads to each choice; empty for the right one."""

    def record(self) -> dict[str, Any]:
        """As a JSON record."""
        return asdict(self)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two items the same question."""
        return (
            self.family,
            self.split == "inverse",
            self.unit,
            *((i.name, i.value, i.unit, i.kind) for i in self.inputs),
        )


def items(split: Split, count: int, seed: int) -> list[Item]:
    """`count` items of every family; no two alike. Families take turns, so that the first items are of all families."""
    drawn = [_draw(family, split, count, f"{seed}/{split}", set()) for family in FAMILIES.values()]
    return [item for turn in zip(*drawn, strict=True) for item in turn]


def training(count: int, seed: int, test: list[Item]) -> list[Item]:
    """In-distribution items that are not among the test items."""
    taken = {item.key for item in test}
    drawn = [_draw(family, "id", count, f"{seed}/train", taken, "train") for family in FAMILIES.values()]
    return [item for turn in zip(*drawn, strict=True) for item in turn]


def _draw(
    family: Family, split: Split, count: int, seed: str, taken: set[Any], label: str | None = None
) -> list[Item]:
    rng = Random(f"sciqa-dcf/{seed}/{family.name}")
    found: list[Item] = []
    for _ in range(ATTEMPTS + 100 * count):
        if len(found) == count:
            return found
        item = _attempt(family, split, rng, f"{family.name}-v{family.version}-{label or split}-{len(found)}")
        if item is not None and item.key not in taken:
            taken.add(item.key)
            found.append(item)
    raise RuntimeError(
        f"science: family {family.name}, split {split}: too few draws give a question that its mistakes answer wrongly"
    )


def _attempt(family: Family, split: Split, rng: Random, name: str) -> Item | None:
    """One draw; None when a mistake would be graded right, or printed digits do not fix the answer."""
    problem, mistakes = family.forward, dict(family.forward.mistakes)
    if split == "chain":
        problem, mistakes = family.chain, dict(family.chain.mistakes)
    stated = [
        _state(variable, _form(variable, split, rng), _value(variable, split, rng))
        for variable in problem.variables
    ]
    if split == "inverse":
        turned = _turn(family, stated)
        if turned is None:
            return None
        problem, stated, mistakes = turned
    given: Given = {variable.name: form.true(value) for variable, form, value in stated}
    form = (
        rng.choice([f for f in problem.answer.restated if not f.kind] or [problem.answer.form])
        if split == "unit"
        else problem.answer.form
    )
    steps = problem.solve(**given)
    gold = float(f"{steps[-1][1].to_value(unit(form.unit)):.{DIGITS_KEPT}g}")
    if not (math.isfinite(gold) and gold > 0):
        return None
    wrong = choices.wrong_answers(problem, mistakes, given, form.unit, gold)
    options = choices.choose(wrong, gold, text.unit(form.unit), rng) if wrong else None
    if options is None:
        return None
    return Item(
        name,
        family.name,
        split,
        question(problem, stated, form),
        text.quantity(gold, form.unit, 4),
        gold,
        form.unit,
        [Input(variable.name, value, f.unit, f.kind) for variable, f, value in stated],
        family.formula,
        [
            *(_step(label, value) for label, value in steps[:-1]),
            f"{steps[-1][0]} = {text.quantity(gold, form.unit, 4)}",
        ],
        options.texts,
        options.gold,
        options.mistakes,
    )


Stated = tuple[Variable, Form, float]


def _value(variable: Variable, split: Split, rng: Random) -> Quantity:
    """Log-uniform in the variable's range, or outside of it."""
    low, high = variable.low, variable.high
    if split == "range":
        beyond = [(low / 10, low * 0.99), (high * 1.01, high * 10)]
        low, high = variable.outside or rng.choice(beyond)
    return math.exp(rng.uniform(math.log(low), math.log(high))) * unit(variable.unit)


def _form(variable: Variable, split: Split, rng: Random) -> Form:
    return rng.choice(variable.restated or [variable.form]) if split == "unit" else variable.form


def _state(variable: Variable, form: Form, true: Quantity) -> Stated:
    """Rounded to the printed digits, so that the gold answer follows from what is printed."""
    return variable, form, float(text.number(form.stated(true)))


def _turn(family: Family, stated: list[Stated]) -> tuple[Problem, list[Stated], Any] | None:
    """The inverse question of a drawn forward one: its answer, rounded, is given; the hidden variable is asked for."""
    forward, inverse = family.forward, family.inverse
    true = {variable.name: form.true(value) for variable, form, value in stated}
    answer = _state(forward.answer, forward.answer.form, forward.solve(**true)[-1][1])
    hidden = next(variable for variable in forward.variables if variable.name == inverse.hidden)
    given = [item for item in stated if item[0].name != inverse.hidden] + [answer]
    found = inverse.solve(**{variable.name: form.true(value) for variable, form, value in given})[-1][1]
    if not abs((found / true[inverse.hidden]).to_value(u.dimensionless_unscaled) - 1) < 0.05:
        return None
    problem = Problem(
        forward.context, tuple(variable for variable, _, _ in given), hidden, inverse.solve, inverse.mistakes
    )
    return problem, given, dict(inverse.mistakes)


def question(problem: Problem, stated: list[Stated], asked: Form) -> str:
    """Context, what is given, what is asked, and in which unit."""
    inputs = "; ".join(
        f"{form.text} {form.symbol} = {text.quantity(value, form.unit)}" for _, form, value in stated
    )
    end = f"Give a number in {text.unit(asked.unit)}." if asked.unit else "Give a number."
    return f"{problem.context} Given: {inputs}. What is the {asked.text} {asked.symbol}? {end}"


def _step(label: str, value: Quantity) -> str:
    name = value.unit.to_string() if value.unit != u.dimensionless_unscaled else ""
    return f"{label} = {text.quantity(float(value.value), _plain_unit(name), 4)}"


def _plain_unit(name: str) -> str:
    """astropy's 'g / cm3' as 'g cm-3'."""
    top, _, bottom = name.partition(" / ")
    parts = [part for part in top.split() if part != "1"]
    for part in bottom.strip("()").split():
        base = part.rstrip("0123456789")
        parts.append(f"{base}-{part[len(base) :] or 1}")
    return " ".join(parts).replace("solMass", "Msun")
