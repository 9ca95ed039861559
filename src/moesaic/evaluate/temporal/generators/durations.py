"""Durations: sums, chains of comparisons, two amounts in different units, proportions, conversions and lengths of months."""

import calendar
from fractions import Fraction
from itertools import pairwise

from moesaic.evaluate.temporal.draft import Draft, Redraw, Rng, above, corners
from moesaic.evaluate.temporal.words import EVENTS, MONTHS, duration, listed, plural

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
CONVERSIONS = {
    # (small, large): small units in a large one, size of the second mistake
    ("second", "minute"): (60, 10),
    ("minute", "hour"): (60, 10),
    ("hour", "day"): (24, 12),
    ("day", "week"): (7, 2),
    ("minute", "day"): (1440, 60),
    ("second", "hour"): (3600, 60),
    ("hour", "week"): (168, 24),
    ("month", "year"): (12, 2),
    ("year", "decade"): (10, 1),
    ("year", "century"): (100, 10),
}
TASKS = (
    "cleaning",
    "painting",
    "packing",
    "cooking",
    "sorting",
    "planning",
    "printing",
    "digging",
    "sewing",
    "filming",
    "baking",
    "mowing",
)


def duration_computation(rng: Rng) -> Draft:
    """Parts added up. Mistakes: the carry from minutes to hours; minutes slipped."""
    first, second = 5 * rng.randrange(5, 40), 5 * rng.randrange(3, 30)
    factor = rng.choice((2, 3))
    event = rng.choice(EVENTS)
    if rng.random() < 0.5:
        value = first + second + factor * second
        rest = f"the second part {duration(second)} and the third part {'twice' if factor == 2 else 'three times'} as long as the second"
        key = f"sum {first} {second} {factor}"
    else:
        value = first + second + first + second
        rest = f"the second part {duration(second)} and the third part as long as the first two together"
        key = f"sum {first} {second} both"
    question = f"At the {event} the first part takes {duration(first)}, {rest}. How long do all three parts take together?"
    wrong = corners(rng, value, (60, rng.choice((5, 10, 20))), duration)
    return Draft(question, duration(value), wrong, key)


def duration_multistep_comparison(rng: Rng) -> Draft:
    """Three durations, two of them given by the one before. The wrong answers are the other two."""
    first = 10 * rng.randrange(2, 20)
    names = rng.sample(TASKS, 3)
    values = [first]
    told = [f"{names[0]} takes {duration(first)}"]
    for before, name in pairwise(names):
        kind, other = rng.randrange(4), values[-1]
        step = 5 * rng.randrange(1, 30)
        if kind == 0:
            values.append(other + step)
            told.append(f"{name} takes {duration(step)} longer than {before}")
        elif kind == 1:
            values.append(above(other - step, 5))
            told.append(f"{name} takes {duration(step)} less than {before}")
        elif kind == 2:
            values.append(2 * other)
            told.append(f"{name} takes twice as long as {before}")
        else:
            values.append(above(other // 2, 5))
            told.append(f"{name} takes half as long as {before}")
            if other % 2:
                raise Redraw
    if len(set(values)) < 3:
        raise Redraw
    longest = rng.random() < 0.5
    best = values.index(max(values) if longest else min(values))
    if best != rng.corner % 3:
        raise Redraw
    shown = rng.sample(names, 3)
    question = f"{told[0][0].upper()}{told[0][1:]}, {told[1]}, and {told[2]}. Which takes the {'longest' if longest else 'shortest'} time: {listed(shown, 'or')}?"
    return Draft(
        question, names[best], tuple(n for n in names if n != names[best]), f"chain {told} {longest}"
    )


def duration_direct_comparison(rng: Rng) -> Draft:
    """Two amounts in different units; the larger number is the longer time in half of the unequal pairs."""
    units = rng.sample(sorted(SECONDS, key=SECONDS.__getitem__), 2)
    amounts = [rng.randrange(2, 200), rng.randrange(2, 200)]
    if rng.corner % 3 == 2:
        small, large = sorted(units, key=SECONDS.__getitem__)
        count = rng.randrange(1, 160)
        units, amounts = [small, large], [count * SECONDS[large] // SECONDS[small], count]
        above(amounts[0], 2, 9999)
    seconds = [a * SECONDS[u] for a, u in zip(amounts, units, strict=True)]
    texts = [plural(a, u) for a, u in zip(amounts, units, strict=True)]
    longer = rng.random() < 0.5
    equal = "they are equally long"
    if rng.corner % 3 == 2:
        answer = equal
        assert seconds[0] == seconds[1]
        rng.shuffle(texts)
    else:
        if not 0.3 < seconds[0] / seconds[1] < 3.4 or seconds[0] == seconds[1]:
            raise Redraw
        order = (seconds[0] > seconds[1]) == longer
        answer = texts[0] if order else texts[1]
        larger_number = texts[0] if amounts[0] > amounts[1] else texts[1]
        if (rng.corner // 3 % 2 == 0) != (answer == larger_number) or amounts[0] == amounts[1]:
            raise Redraw
        # The order of the two follows from the class, so that each is right as often as the other.
        texts = [answer, *(t for t in texts if t != answer)]
        if rng.corner % 3:
            texts.reverse()
    question = (
        f"Which is {'longer' if longer else 'shorter'}: {texts[0]} or {texts[1]}, or are they equally long?"
    )
    wrong = tuple(t for t in (*texts, equal) if t != answer)
    return Draft(question, answer, wrong, f"compare {sorted(texts)}")


def duration_analogy(rng: Rng) -> Draft:
    """a : b = c : x. Mistakes: the ratio off by one; a unit slipped."""
    ratio = rng.randrange(2, 13)
    small, large = rng.choice((("minute", "hour"), ("hour", "day"), ("day", "week"), ("second", "minute")))
    count, given = rng.randrange(1, 5), rng.randrange(2, 30)
    per = SECONDS[large] // SECONDS[small]
    first = Fraction(count * per, ratio)
    if first.denominator != 1:
        raise Redraw
    unit = rng.choice([u for u in (*SECONDS, "month", "year") if u not in (small, large)])
    value = ratio * given
    question = f"{plural(int(first), small)} is to {plural(count, large)} as {plural(given, unit)} is to what? Answer in {unit}s."
    wrong = corners(rng, value, (given, rng.choice((1, 2, 10))), lambda n: plural(above(n, 1), unit))
    return Draft(
        question, plural(value, unit), wrong, f"analogy {first} {small} {count} {large} {given} {unit}"
    )


def duration_facts(rng: Rng) -> Draft:
    """How units are made of each other, and how long months are. Mistakes: one large unit too many or too few; half days; a day off."""
    if rng.random() < 0.3:
        days = (28, 29, 30, 31)[rng.corner % 4]
        # Every length is asked as often; for February now and then a century year is taken, where the rule is harder.
        found = 0
        while found != days:
            year, month = rng.randrange(1600, 2400), rng.randrange(1, 13)
            if days < 30:
                month, year = 2, 100 * (year // 100) if rng.random() < 0.1 else year
            found = calendar.monthrange(year, month)[1]
        question = f"How many days does {MONTHS[month - 1]} {year} have?"
        wrong = tuple(plural(d, "day") for d in (28, 29, 30, 31) if d != days)
        return Draft(question, plural(days, "day"), wrong, f"length {month} {year}")
    small, large = rng.choice(sorted(CONVERSIONS))
    per, slip = CONVERSIONS[small, large]
    count = rng.randrange(2, 200)
    value = per * count
    many = {"century": "centuries"}.get(large, f"{large}s")
    question = rng.choice((
        f"How many {small}s are there in {count} {many}?", f"{count} {many} are how many {small}s?"
    ))  # fmt: skip
    wrong = corners(rng, value, (per, slip), lambda n: plural(above(n, 1), small))
    return Draft(question, plural(value, small), wrong, f"unit {small} {large} {count}")
