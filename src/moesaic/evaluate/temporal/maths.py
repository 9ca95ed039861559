"""Conversations for Timo's first stage (maths before time): generated word problems with their steps, and sums with times and dates.

The published stage takes MathInstruct, which has to be fetched from a hub; this is what can be had without one, with exact answers. The
time problems come from the training side of the content split (make.split_of), so that none is ever a test item, under any seed.
"""

import random
from collections.abc import Callable, Iterator
from itertools import cycle

from moesaic.errors import InputError
from moesaic.evaluate.temporal.draft import Rng
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.make import IDLE, drafts
from moesaic.evaluate.temporal.tasks import GENERATED, TASKS
from moesaic.evaluate.temporal.verify import LETTERS, prompt
from moesaic.evaluate.temporal.words import PEOPLE, listed, plural

Problem = tuple[str, list[str], str]
"""Question, steps, answer."""
MATH_TIME = tuple(name for name in GENERATED if TASKS[name].kind == "math-time")


def shopping(rng: random.Random) -> Problem:
    """Sums of products."""
    (a, p), (b, q) = ((rng.randrange(2, 20), rng.randrange(2, 40)) for _ in range(2))
    one, other = rng.sample(("pen", "book", "lamp", "cup", "chair", "plant", "candle", "towel"), 2)
    question = f"{rng.choice(PEOPLE)} buys {a} {one}s at {p} dollars each and {b} {other}s at {q} dollars each. How many dollars is that in all?"
    return (
        question,
        [f"{a} * {p} = {a * p}", f"{b} * {q} = {b * q}", f"{a * p} + {b * q} = {a * p + b * q}"],
        str(a * p + b * q),
    )


def discount(rng: random.Random) -> Problem:
    """Percentages that come out even."""
    percent, hundreds = 5 * rng.randrange(1, 16), 20 * rng.randrange(2, 60)
    off = percent * hundreds // 100
    question = f"A coat costs {hundreds} dollars and is reduced by {percent} percent. What does it cost now, in dollars?"
    return (
        question,
        [f"{percent} / 100 * {hundreds} = {off}", f"{hundreds} - {off} = {hundreds - off}"],
        str(hundreds - off),
    )


def workers(rng: random.Random) -> Problem:
    """Inverse proportion."""
    first, second, each = rng.randrange(2, 15), rng.randrange(2, 15), rng.randrange(1, 12)
    days = second * each
    total = first * days
    question = f"{plural(first, 'worker')} need {plural(days, 'day')} for a wall. How many days do {plural(second, 'worker')} need at the same pace?"
    return (
        question,
        [f"{first} * {days} = {total} days of work", f"{total} / {second} = {total // second}"],
        str(total // second),
    )


def equation(rng: random.Random) -> Problem:
    """A linear equation with a whole solution."""
    a, x, b = rng.randrange(2, 15), rng.randrange(-20, 40), rng.randrange(1, 60)
    steps = [f"{a}x = {a * x + b} - {b} = {a * x}", f"x = {a * x} / {a} = {x}"]
    return f"Solve for x: {a}x + {b} = {a * x + b}.", steps, str(x)


def mean(rng: random.Random) -> Problem:
    """The mean of four numbers, a whole one."""
    numbers = [rng.randrange(1, 90) for _ in range(3)]
    numbers.append(rng.randrange(1, 30) * 4 - sum(numbers) % 4)
    total = sum(numbers)
    question = f"What is the mean of {listed([str(n) for n in numbers])}?"
    return (
        question,
        [f"{' + '.join(map(str, numbers))} = {total}", f"{total} / 4 = {total // 4}"],
        str(total // 4),
    )


def boxes(rng: random.Random) -> Problem:
    """Division with remainder."""
    size, full, rest = rng.randrange(6, 30), rng.randrange(3, 40), rng.randrange(1, 6)
    count = size * full + rest
    question = f"{count} eggs are packed in boxes of {size}. How many eggs are left over when no more box can be filled?"
    return (
        question,
        [
            f"{count} / {size} = {full}, remainder {rest}",
            f"{size} * {full} = {size * full}",
            f"{count} - {size * full} = {rest}",
        ],
        str(rest),
    )


def product(rng: random.Random) -> Problem:
    """Multiplication by parts."""
    a, b = rng.randrange(12, 100), rng.randrange(12, 100)
    tens, ones = b // 10 * 10, b % 10
    steps = [f"{a} * {tens} = {a * tens}", f"{a} * {ones} = {a * ones}", f"{a * tens} + {a * ones} = {a * b}"]
    return f"What is {a} times {b}?", steps, str(a * b)


def ages(rng: random.Random) -> Problem:
    """Two ages from their sum and difference."""
    young, gap = rng.randrange(3, 40), rng.randrange(2, 30)
    one, other = rng.sample(PEOPLE, 2)
    total = 2 * young + gap
    question = (
        f"{one} is {gap} years older than {other}. Together they are {total} years old. How old is {other}?"
    )
    return question, [f"{total} - {gap} = {total - gap}", f"{total - gap} / 2 = {young}"], str(young)


PROBLEMS: dict[str, Callable[[random.Random], Problem]] = {
    function.__name__: function
    for function in (shopping, discount, workers, equation, mean, boxes, product, ages)
}


def records(conversations: int, time: float, seed: int) -> Iterator[dict[str, str]]:
    """So many records in alpaca's form (instruction, input, output), no question twice.

    Args:
        time: share of the problems about times and dates, in short-answer and multiple-choice form by turns; the rest are word problems.
    """
    rng = random.Random(f"maths/{seed}")
    families, turns = cycle(PROBLEMS.values()), cycle(_time(name, seed) for name in MATH_TIME)
    seen: set[str] = set()
    idle = 0
    while len(seen) < conversations:
        idle += 1
        if idle > IDLE:
            raise InputError(
                f"maths: only {len(seen)} different conversations can be made; ask for fewer, or for less about time"
            )
        if rng.random() < time:
            instruction, output = next(next(turns))
        else:
            question, steps, answer = next(families)(rng)
            instruction, output = question, "\n".join([*steps, f"The answer is {answer}."])
        if instruction not in seen:
            seen.add(instruction)
            idle = 0
            yield {"instruction": instruction, "input": "", "output": output}


def _time(task: str, seed: int) -> Iterator[tuple[str, str]]:
    """Prompts as in tuning and evaluation, and their answers."""
    for number, made in enumerate(drafts(task, "train", seed)):
        if number % 2:
            item = Item("", task, TASKS[task].kind, made.question, made.answer, (), "train")
            yield prompt(item), f"The answer is {made.answer}."
        else:
            choices = [made.answer, *made.wrong]
            Rng(f"maths/{seed}/{task}/{number}").shuffle(choices)
            letter = LETTERS[choices.index(made.answer)]
            item = Item("", task, TASKS[task].kind, made.question, letter, tuple(choices), "train")
            yield prompt(item), f"The answer is ({letter}) {made.answer}."
