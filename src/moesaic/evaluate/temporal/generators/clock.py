"""Clock times: adding and taking off hours and minutes, moved appointments, spans over midnight, time zones, word problems."""

import datetime as dt
from collections.abc import Callable

from moesaic.evaluate.temporal.draft import Draft, Redraw, Rng, above, corners
from moesaic.evaluate.temporal.words import (
    DAY,
    EVENTS,
    PEOPLE,
    clock12,
    clock24,
    date,
    duration,
    ordinal,
    plural,
)

# Cities without daylight saving time; minutes east of UTC.
ZONES = {
    "Tokyo": 540, "Delhi": 330, "Nairobi": 180, "Dubai": 240, "Bangkok": 420, "Singapore": 480, "Kathmandu": 345, "Lagos": 60,
    "Accra": 0, "Brisbane": 600, "Honolulu": -600, "Phoenix": -420, "Bogota": -300, "Buenos Aires": -180, "La Paz": -240,
}  # fmt: skip
PHRASES = {
    15: "a quarter of an hour",
    30: "half an hour",
    45: "three quarters of an hour",
    60: "one hour",
    90: "an hour and a half",
}


def _adjust(rng: Rng, text: Callable[[int], str], half_day: bool) -> Draft:
    start, later = rng.randrange(DAY), rng.random() < 0.5
    hours, minutes = rng.randrange(0, 13), rng.randrange(1, 60)
    step = (60 * hours + minutes) * (1 if later else -1)
    # A forgotten or doubled carry keeps the minutes, and so does the wrong half of the day; a slip in the minutes keeps the hour.
    sizes = (rng.choice((60, 720) if half_day else (60, 120)), rng.choice((5, 10, 20)))
    word = "after" if later else "before"
    question = rng.choice((
        f"What time is it {duration(abs(step))} {word} {text(start)}?",
        f"A clock shows {text(start)}. What time {'will it show' if later else 'did it show'} {duration(abs(step))} {'later' if later else 'earlier'}?",
    ))  # fmt: skip
    value = (start + step) % DAY
    return Draft(question, text(value), corners(rng, value, sizes, text, DAY), f"clock {start} {step}")


def hour_adjustment_24h(rng: Rng) -> Draft:
    """Mistakes: carry forgotten or doubled; minutes slipped."""
    return _adjust(rng, clock24, False)


def hour_adjustment_12h(rng: Rng) -> Draft:
    """Mistakes: carry; AM for PM; minutes slipped."""
    return _adjust(rng, clock12, True)


def shift_short(rng: Rng) -> Draft:
    """An appointment moved by minutes or hours, in words that people misread. Mistakes: the wrong direction; an hour or ten minutes off."""
    later = rng.signs()[0] < 0  # then the wrong direction lies before the answer
    start = 5 * rng.randrange(DAY // 5)
    step = rng.choice((*PHRASES, 10, 20, 25, 35, 40, 50, 55, 75, 80, 100, 105, 110, 125, 135, 140, 150))
    amount = PHRASES.get(step) or duration(step)
    verb = rng.choice(
        ("pushed back by", "postponed by", "delayed by")
        if later
        else ("brought forward by", "moved up by", "advanced by")
    )
    event = rng.choice(EVENTS)
    question = (
        f"The {event} was set for {clock12(start)} and has been {verb} {amount}. When does it start now?"
    )
    value = (start + (step if later else -step)) % DAY
    wrong = corners(rng, value, (2 * step, rng.choice((10, 60))), clock12, DAY)
    return Draft(question, clock12(value), wrong, f"clock {start} {step if later else -step}")


def time_computation(rng: Rng) -> Draft:
    """The time between two clock times, often over midnight. Mistakes: an hour too many or too few; minutes slipped."""
    start, span = rng.randrange(DAY), rng.randrange(61, 20 * 60)
    end = start + span
    name = rng.choice(PEOPLE)
    when = " the next day" if end >= DAY else " the same day"
    question = rng.choice((
        f"{name}'s train leaves at {clock12(start)} and arrives at {clock12(end)}{when}. How long does the trip take?",
        f"{name} starts a shift at {clock12(start)} and ends it at {clock12(end)}{when}. How long is the shift?",
    ))  # fmt: skip
    wrong = corners(rng, span, (60, rng.choice((5, 10, 20))), lambda m: duration(above(m, 1, DAY - 1)))
    return Draft(question, duration(span), wrong, f"span {start} {span}")


def time_zone_conversion(rng: Rng) -> Draft:
    """Mistakes: the difference taken in the wrong direction; one hour or one day off."""
    here, there = rng.sample(sorted(ZONES), 2)
    gap = ZONES[there] - ZONES[here]
    if gap == 0 or (gap > 0) != (rng.signs()[0] < 0):
        raise Redraw
    day = dt.date(rng.randrange(1990, 2040), 1, 1) + dt.timedelta(rng.randrange(365))
    start = dt.datetime.combine(day, dt.time()) + dt.timedelta(minutes=5 * rng.randrange(DAY // 5))

    def text(minutes: int) -> str:
        moment = dt.datetime(1980, 1, 1) + dt.timedelta(minutes=minutes)
        return f"{clock24(moment.hour * 60 + moment.minute)} on {date(moment.date())}"

    local = round((start - dt.datetime(1980, 1, 1)).total_seconds() / 60)
    question = (
        f"{here} is at {_offset(ZONES[here])} and {there} at {_offset(ZONES[there])}. It is {text(local)} in {here}. "
        f"What are the time and the date in {there}?"
    )
    wrong = corners(rng, local + gap, (2 * abs(gap), rng.choice((60, DAY))), text)
    return Draft(question, text(local + gap), wrong, f"zone {local} {gap}")


def _offset(minutes: int) -> str:
    hours, rest = divmod(abs(minutes), 60)
    return f"UTC{'-' if minutes < 0 else '+'}{hours}" + (f":{rest:02d}" if rest else "")


def arithmetic_application(rng: Rng) -> Draft:
    """Word problems: departures at intervals, work at a constant rate, travel at a constant speed."""
    return rng.choice((_departures, _rate, _travel))(rng)


def _departures(rng: Rng) -> Draft:
    """Mistakes: the fence-post error, which counts one interval too many or too few; an hour off."""
    start, gap, number = (
        5 * rng.randrange(60, 144),
        rng.choice((12, 14, 15, 18, 20, 25, 35, 40)),
        rng.randrange(4, 12),
    )
    value = start + gap * (number - 1)
    question = (
        f"The first bus of the day leaves at {clock12(start)}; after that one leaves every {gap} minutes. "
        f"When does the {ordinal(number)} bus leave?"
    )
    return Draft(
        question, clock12(value), corners(rng, value, (gap, 60), clock12, DAY), f"bus {start} {gap} {number}"
    )


def _rate(rng: Rng) -> Draft:
    """Mistakes: one lot too many or too few; minutes slipped."""
    pages, minutes, lots = rng.randrange(2, 40), rng.randrange(3, 30), rng.randrange(5, 25)
    value = minutes * lots
    question = f"A machine makes {plural(pages, 'part')} in {plural(minutes, 'minute')}. How long does it take for {pages * lots} parts?"
    wrong = corners(rng, value, (minutes, rng.choice((1, 2, 60))), duration)
    return Draft(question, duration(value), wrong, f"rate {pages} {minutes} {lots}")


def _travel(rng: Rng) -> Draft:
    """Mistakes: an hour off; decimal hours read as minutes."""
    speed, quarters = 4 * rng.randrange(4, 30), rng.randrange(3, 30)
    value = 15 * quarters
    question = f"A car drives {speed * quarters // 4} kilometres at a steady {speed} kilometres per hour. How long does the drive take?"
    return Draft(
        question,
        duration(value),
        corners(rng, value, (60, rng.choice((5, 10, 15))), duration),
        f"travel {speed} {value}",
    )
