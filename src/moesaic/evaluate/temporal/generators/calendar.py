"""Dates: years, months, weekdays and days shifted, ISO weeks, Julian and Gregorian calendars."""

import datetime as dt

from moesaic.evaluate.temporal.draft import Draft, Redraw, Rng, above, corners
from moesaic.evaluate.temporal.words import EVENTS, MONTHS, WEEKDAYS, date, month_year, plural

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def year_shift(rng: Rng) -> Draft:
    """Mistakes: the first or last year counted twice; a carry between tens or hundreds."""
    start, step = rng.randrange(1500, 2100), rng.randrange(7, 150)
    later = rng.random() < 0.5
    value = start + (step if later else -step)
    question = rng.choice((
        f"Which year {'comes' if later else 'came'} {plural(step, 'year')} {'after' if later else 'before'} {start}?",
        f"A town {'was founded' if later else 'celebrated its anniversary'} in {start}. "
        + (f"In which year was it {step} years old?" if later else f"It was then {step} years old. In which year was it founded?"),
    ))  # fmt: skip
    wrong = corners(rng, value, (rng.choice((1, 2)), rng.choice((10, 20, 100))), str)
    return Draft(question, str(value), wrong, f"year {start} {value - start}")


def month_shift(rng: Rng) -> Draft:
    """Mistakes: the start month counted as the first one; the year taken for ten or fourteen months."""
    start, step, later = rng.randrange(12), rng.randrange(2, 90), rng.random() < 0.5
    value = (start + (step if later else -step)) % 12
    question = rng.choice((
        f"Which month is {plural(step, 'month')} {'after' if later else 'before'} {MONTHS[start]}?",
        f"It is {MONTHS[start]}. Which month {'will it be in' if later else 'was it'} {plural(step, 'month')}{'' if later else ' ago'}?",
    ))  # fmt: skip
    wrong = corners(rng, value, (1, rng.choice((2, 3, 4))), lambda m: MONTHS[m], 12)
    return Draft(question, MONTHS[value], wrong, f"month {start} {step if later else -step}")


def date_computation(rng: Rng) -> Draft:
    """Mistakes: the first day counted; a month taken for 28, 30 or 31 days; a week off."""
    start = dt.date(rng.randrange(1900, 2100), 1, 1) + dt.timedelta(rng.randrange(365))
    step, later = rng.randrange(10, 400), rng.random() < 0.5
    value = start.toordinal() + (step if later else -step)
    question = rng.choice((
        f"Which date is {step} days {'after' if later else 'before'} {date(start)}?",
        f"{'A loan was taken out' if later else 'A letter arrived'} on {date(start)}. "
        + (f"It is due {step} days later. On which date?" if later else f"It had been sent {step} days earlier. On which date?"),
    ))  # fmt: skip
    wrong = corners(rng, value, (rng.choice((1, 2)), rng.choice((3, 7, 10))), _date)
    return Draft(question, _date(value), wrong, f"date {start.toordinal()} {value - start.toordinal()}")


def _date(ordinal: int) -> str:
    return date(dt.date.fromordinal(ordinal))


def week_identification(rng: Rng) -> Draft:
    """ISO 8601 week number. Mistakes: weeks counted from January 1 or from 0; months of four or five weeks."""
    day = dt.date(rng.randrange(1950, 2060), 1, 1) + dt.timedelta(rng.randrange(365))
    value = day.isocalendar().week
    question = rng.choice((
        f"What is the ISO week number of {date(day)}?",
        f"In which ISO calendar week does {date(day)} fall? Give the number of the week.",
    ))  # fmt: skip
    wrong = corners(rng, value, (1, rng.choice((2, 4, 5))), lambda week: str(above(week, 1, 53)))
    return Draft(question, str(value), wrong, f"week {day.toordinal()}")


def shift_medium(rng: Rng) -> Draft:
    """A weekly event moved by days. Mistakes: the wrong direction; one day off."""
    later = rng.signs()[0] < 0
    start, step = rng.randrange(7), rng.randrange(1, 100)
    if step % 7 == 0:
        raise Redraw
    weeks, days = divmod(step, 7)
    amount = plural(step, "day")
    if weeks and weeks <= 12 and rng.random() < 0.5:
        amount = f"{NUMBERS[weeks - 1]} week{'s' if weeks > 1 else ''} and {plural(days, 'day')}"
    verb = rng.choice(("postponed by", "pushed back by") if later else ("brought forward by", "moved up by"))
    question = f"The {rng.choice(EVENTS)} was planned for a {WEEKDAYS[start]} and has been {verb} {amount}. On which day of the week is it now?"
    value = (start + (step if later else -step)) % 7
    wrong = corners(rng, value, (2 * step, 1), lambda day: WEEKDAYS[day], 7)
    return Draft(question, WEEKDAYS[value], wrong, f"weekday {start} {step if later else -step}")


def shift_long(rng: Rng) -> Draft:
    """An opening moved by months or years. Mistakes: the wrong direction; a month or a year off."""
    later = rng.signs()[0] < 0
    start, step = 12 * rng.randrange(1950, 2060) + rng.randrange(12), rng.randrange(2, 60)
    amount = {6: "half a year", 18: "a year and a half", 30: "two and a half years"}.get(step)
    if amount is None:
        years, rest = divmod(step, 12)
        if rest == 0:
            amount = plural(years, "year")
        elif step % 3 == 0 and rng.random() < 0.5:
            amount = plural(step // 3, "quarter")
        else:
            amount = plural(step, "month")
    verb = rng.choice(("postponed by", "delayed by") if later else ("brought forward by", "moved up by"))
    thing = rng.choice(("bridge", "museum", "tunnel", "library", "stadium", "station"))
    question = f"The opening of the {thing} was planned for {month_year(start)} and has been {verb} {amount}. For which month and year is it planned now?"
    value = start + (step if later else -step)
    wrong = corners(rng, value, (2 * step, rng.choice((1, 12))), month_year)
    return Draft(question, month_year(value), wrong, f"months {start} {value - start}")


def shift_calendar(rng: Rng) -> Draft:
    """A date of the Julian calendar in the Gregorian one, or back. Mistakes: the wrong direction; one or two days off."""
    to_gregorian = rng.signs()[0] < 0
    day = dt.date(rng.randrange(1600, 2100), 1, 1).toordinal() + rng.randrange(365)
    names = ("Julian", "Gregorian") if to_gregorian else ("Gregorian", "Julian")
    shown, year = date(dt.date.fromordinal(day)), dt.date.fromordinal(day)
    if (year.month, year.day) in ((2, 29), (2, 28), (3, 1)):
        raise Redraw  # the two calendars disagree on the leap day itself
    value = _as_julian(day, 1) if to_gregorian else _as_julian(day, -1)
    gap = abs(value - day)
    question = rng.choice((
        f"What is {shown} of the {names[0]} calendar in the {names[1]} calendar?",
        f"A document gives the {names[0]} date {shown}. Which date is that in the {names[1]} calendar?",
    ))  # fmt: skip
    wrong = corners(rng, value, (2 * gap, rng.choice((1, 2))), _date)
    return Draft(question, _date(value), wrong, f"calendar {names[0]} {day}")


def _as_julian(ordinal: int, sign: int) -> int:
    """The proleptic ordinal of the same day in the other calendar: by the century rule, 10 days in 1600 and one more in 1700, 1800, 1900.

    Both calendars are written as year, month, day, so the result is again looked up as a Gregorian ordinal; the days that exist in one
    calendar only (February 29 of 1700, 1800, 1900) raise Redraw.
    """
    day = dt.date.fromordinal(ordinal)
    century, passed = divmod(day.year, 100)
    before_march = day.month < 3
    year = day.year - 1 if before_march else day.year
    gap = year // 100 - year // 400 - 2
    if passed == 0 and century % 4:
        raise Redraw  # a year that is a leap year in one calendar only
    return ordinal + sign * gap
