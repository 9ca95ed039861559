"""Short made-up passages with three times, durations or frequencies, and idioms of time. The wrong answers stand in the passage too."""

from moesaic.evaluate.temporal.draft import Draft, Redraw, Rng, corners
from moesaic.evaluate.temporal.generators.calendar import NUMBERS
from moesaic.evaluate.temporal.words import DAY, MONTHS, PEOPLE, clock12, clock24, duration, listed

ACTIVITIES = (
    "painting",
    "reading",
    "cooking",
    "gardening",
    "swimming",
    "sewing",
    "writing",
    "practising the violin",
    "cycling",
    "tidying up",
)
PLACES = (
    "bakery",
    "library",
    "post office",
    "swimming pool",
    "museum",
    "town hall",
    "pharmacy",
    "bookshop",
    "tram depot",
    "market hall",
)
HABITS = {
    "swims": "swim", "visits the dentist": "visit the dentist", "cleans the windows": "clean the windows", "calls an aunt": "call an aunt",
    "checks the boiler": "check the boiler", "bakes bread": "bake bread", "goes to the cinema": "go to the cinema",
    "mows the lawn": "mow the lawn",
}  # fmt: skip
RHYTHMS = (
    "once a day", "twice a day", "three times a day", "every other day", "once a week", "twice a week", "three times a week", "every two weeks",
    "once a month", "twice a month", "every two months", "four times a year", "every six months", "once a year", "every two years",
)  # fmt: skip


def duration_reading(rng: Rng) -> Draft:
    """One duration is stated, two follow from start and end."""
    name, acts = rng.choice(PEOPLE), rng.sample(ACTIVITIES, 3)
    spans = [5 * rng.randrange(3, 40) for _ in acts]
    if len(set(spans)) < 3:
        raise Redraw
    start = 5 * rng.randrange(84, 120)
    second = start + spans[0] + 5 * rng.randrange(1, 12)
    last = second + spans[1]
    told = (
        f"{name} began the day with {acts[0]} from {clock24(start)} to {clock24(start + spans[0])}. "
        f"Then came {acts[1]}, which started at {clock24(second)} and was over at {clock24(last)}. "
        f"In the evening {name} spent {duration(spans[2])} on {acts[2]}."
    )
    asked = rng.corner % 3
    texts = [duration(span) for span in spans]
    question = f"{told} How long did the {acts[asked]} last?"
    return Draft(
        question,
        texts[asked],
        tuple(t for i, t in enumerate(texts) if i != asked),
        f"passage {acts} {spans} {start} {second} {asked}",
    )


def frequency_reading(rng: Rng) -> Draft:
    """Three habits with their frequencies."""
    name, habits, words = rng.choice(PEOPLE), rng.sample(sorted(HABITS), 3), rng.sample(RHYTHMS, 3)
    asked = rng.corner % 3
    told = listed([f"{habit} {word}" for habit, word in zip(habits, words, strict=True)])
    question = f"{name} {told}. How often does {name} {HABITS[habits[asked]]}?"
    return Draft(
        question,
        words[asked],
        tuple(w for w in words if w != words[asked]),
        f"habits {sorted(zip(habits, words, strict=True))} {habits[asked]}",
    )


def typical_time_reading(rng: Rng) -> Draft:
    """Three opening times, one of them given as so long before or after another."""
    places = rng.sample(PLACES, 3)
    first, third = 5 * rng.randrange(60, 120), 5 * rng.randrange(100, 150)
    gap, later = 5 * rng.randrange(2, 30), rng.random() < 0.5
    second = first + (gap if later else -gap)
    times = [first, second, third]
    if len(set(times)) < 3:
        raise Redraw
    asked = rng.corner % 3
    question = (
        f"In a small town the {places[0]} opens at {clock12(first)}, the {places[1]} {duration(gap)} {'later' if later else 'earlier'} than that, "
        f"and the {places[2]} at {clock12(third)}. At what time does the {places[asked]} open?"
    )
    texts = [clock12(t) for t in times]
    return Draft(
        question,
        texts[asked],
        tuple(t for i, t in enumerate(texts) if i != asked),
        f"opening {places} {times} {asked}",
    )


def ambiguity_interpretation(rng: Rng) -> Draft:
    """What a phrase or a notation means: spoken clock times, and dates in figures."""
    return rng.choice((_spoken, _figures))(rng)


def _spoken(rng: Rng) -> Draft:
    """Mistakes: half an hour or an hour off (half past for half to, quarter to for quarter past); AM for PM."""
    hour, minute = rng.randrange(24), rng.choice((15, 30, 45, 5, 10, 20, 25, 35, 40, 50, 55))
    shown = NUMBERS[((hour if minute <= 30 else hour + 1) - 1) % 12]
    part = {15: "a quarter past", 30: "half past", 45: "a quarter to"}.get(minute)
    if part is None:
        names = {5: "five", 10: "ten", 20: "twenty", 25: "twenty-five"}
        part = f"{names[minute]} past" if minute <= 30 else f"{names[60 - minute]} to"
    # The hour that is named must lie in the part of the day that is named.
    if minute > 30 and hour in (11, 23):
        raise Redraw
    span = (
        "at night"
        if hour == 0
        else "in the morning"
        if hour < 12
        else "in the afternoon"
        if 12 <= hour < 17
        else "in the evening"
    )
    value = 60 * hour + minute
    question = f"What time is '{part} {shown} {span}' on a 12-hour clock with AM or PM?"
    wrong = corners(rng, value, (rng.choice((30, 60)), 720), clock12, DAY)
    return Draft(question, clock12(value), wrong, f"spoken {hour} {minute}")


def _figures(rng: Rng) -> Draft:
    """Mistakes: day and month exchanged; months counted from zero."""
    day, month, year = rng.randrange(1, 13), rng.randrange(1, 13), rng.randrange(1950, 2060)
    day_first = rng.random() < 0.5
    sign = rng.signs()[0]
    months = {value: (value - 1 + sign) % 12 + 1 for value in (day, month)}
    if day == month or months[day] == month or months[month] == day:
        raise Redraw

    def text(d: int, m: int) -> str:
        return f"{MONTHS[m - 1]} {d}, {year}"

    shown = f"{day:02d}/{month:02d}/{year}" if day_first else f"{month:02d}/{day:02d}/{year}"
    order = "day/month/year" if day_first else "month/day/year"
    question = f"A form asks for dates as {order}. Which date is {shown} on it?"
    wrong = (text(month, day), text(day, months[month]), text(month, months[day]))
    return Draft(question, text(day, month), wrong, f"figures {day} {month} {year} {order}")
