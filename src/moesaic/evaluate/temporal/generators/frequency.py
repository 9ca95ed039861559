"""How often: counts in the calendar, rates compared, rates multiplied out, and when two rhythms meet."""

import datetime as dt
import math
from fractions import Fraction

from moesaic.evaluate.temporal.draft import Draft, Redraw, Rng, above, corners
from moesaic.evaluate.temporal.words import DAY, PEOPLE, WEEKDAYS, clock12, date, listed, plural

HABITS = (
    "waters the plants",
    "goes for a run",
    "calls home",
    "buys bread",
    "goes swimming",
    "practises the piano",
    "feeds the fish",
    "takes the tram",
)


def _number(value: int) -> str:
    return str(above(value, 0))


def frequency_facts(rng: Rng) -> Draft:
    """Leap years and weekdays counted in the calendar. Mistakes: an end left out or counted twice; the century rule forgotten."""
    if rng.random() < 0.5:
        first = rng.randrange(1700, 2150)
        last = first + rng.randrange(12, 130)
        value = sum(
            1 for year in range(first, last + 1) if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        )
        question = f"How many leap years are there from {first} through {last}, both included?"
        return Draft(question, str(value), corners(rng, value, (1, 2), _number), f"leap {first} {last}")
    start = dt.date(rng.randrange(1950, 2060), 1, 1) + dt.timedelta(rng.randrange(365))
    end, day = start + dt.timedelta(rng.randrange(40, 200)), rng.randrange(7)
    value = sum(1 for i in range((end - start).days + 1) if (start.weekday() + i) % 7 == day)
    question = f"How many {WEEKDAYS[day]}s are there from {WEEKDAYS[start.weekday()]}, {date(start)}, through {date(end)}, both included?"
    return Draft(question, str(value), corners(rng, value, (1, 2), _number), f"weekdays {start} {end} {day}")


def _rhythm(rng: Rng) -> tuple[str, Fraction]:
    """A rate in words, and per day."""
    kind, number = rng.randrange(4), rng.randrange(2, 12)
    if kind == 0:
        return f"every {number} days", Fraction(1, number)
    if kind == 1:
        return f"{number} times a week", Fraction(number, 7)
    if kind == 2:
        return f"{number} times in {4 + number % 3} weeks", Fraction(number, 7 * (4 + number % 3))
    return f"every {12 * number} hours", Fraction(2, number)


def frequency_comparison(rng: Rng) -> Draft:
    """Three rates in different words. The wrong answers are the other two."""
    names = rng.sample(PEOPLE, 3)
    rhythms = [_rhythm(rng) for _ in names]
    rates = [rate for _, rate in rhythms]
    most = rng.random() < 0.5
    best = rates.index(max(rates) if most else min(rates))
    if len(set(rates)) < 3 or best != rng.corner % 3:
        raise Redraw
    habit = rng.choice(HABITS)
    told = listed([f"{name} {habit} {words}" for name, (words, _) in zip(names, rhythms, strict=True)])
    question = (
        f"{told}. Who does it {'most' if most else 'least'} often: {listed(rng.sample(names, 3), 'or')}?"
    )
    key = f"rates {sorted(words for words, _ in rhythms)} {most}"
    return Draft(question, names[best], tuple(n for n in names if n != names[best]), key)


def frequency_computation(rng: Rng) -> Draft:
    """A rate over a span. Mistakes: one period too many or too few; a count off by one or two."""
    name = rng.choice(PEOPLE)
    if rng.random() < 0.5:
        hours, days = rng.choice((2, 3, 4, 6, 8, 12)), rng.randrange(2, 30)
        each, value = 24 // hours, 24 // hours * days
        question = f"{name} takes a tablet every {hours} hours, day and night. How many tablets are that in {days} days?"
        key = f"every {hours} {days}"
    else:
        each, weeks = rng.randrange(2, 15), rng.randrange(2, 52)
        value = each * weeks
        question = (
            f"{name} {rng.choice(HABITS)} {each} times a week. How many times is that in {weeks} weeks?"
        )
        key = f"times {each} {weeks}"
    slip = 1 if each > 2 else 3
    return Draft(question, str(value), corners(rng, value, (each, slip), lambda n: str(above(n, 1))), key)


def frequency_application(rng: Rng) -> Draft:
    """When two rhythms meet again: the least common multiple. Mistakes: one turn of either too many or too few."""
    if rng.random() < 0.5:
        first, second = rng.sample((6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 24, 25, 28, 30, 35, 36), 2)
        start = 5 * rng.randrange(72, 180)
        value = start + math.lcm(first, second)
        if (
            math.lcm(first, second) in (first, second)
            or value - first - second <= start
            or value - start > 600
        ):
            raise Redraw
        question = (
            f"Two buses leave a station together at {clock12(start)}. One leaves every {first} minutes, the other every {second} minutes. "
            "When do they next leave together?"
        )
        wrong = corners(rng, value, (first, second), clock12, DAY)
        return Draft(question, clock12(value), wrong, f"meet {start} {sorted((first, second))}")
    first, second = rng.sample(range(3, 31), 2)
    value = math.lcm(first, second)
    if value in (first, second) or value - first - second <= 0:
        raise Redraw
    one, other = rng.sample(PEOPLE, 2)
    question = (
        f"{one} goes to the library every {first} days and {other} every {second} days. Today both are there. "
        "In how many days will both be there again on the same day?"
    )
    wrong = corners(rng, value, (first, second), lambda n: plural(above(n, 1), "day"))
    return Draft(question, plural(value, "day"), wrong, f"together {sorted((first, second))}")
