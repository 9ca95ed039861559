"""Numbers, times, dates and durations as text. One way to write each, so that choices differ in nothing but their value."""

import datetime as dt

from moesaic.evaluate.temporal.draft import Redraw

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PEOPLE = (
    "Ada", "Ben", "Chen", "Dina", "Emre", "Fatima", "Georg", "Hana", "Ivan", "Jona", "Kofi", "Lena", "Mira", "Nils", "Omar", "Paula",
)  # fmt: skip
EVENTS = (
    "concert", "meeting", "lecture", "auction", "workshop", "rehearsal", "market", "tournament", "ceremony", "interview", "parade", "seminar",
)  # fmt: skip
DAY = 24 * 60


def plural(number: int, unit: str) -> str:
    """1 day, 2 days."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def clock24(minutes: int) -> str:
    """Minutes after midnight (any day) as 07:05."""
    hours, rest = divmod(minutes % DAY, 60)
    return f"{hours:02d}:{rest:02d}"


def clock12(minutes: int) -> str:
    """Minutes after midnight (any day) as 7:05 AM."""
    hours, rest = divmod(minutes % DAY, 60)
    return f"{(hours - 1) % 12 + 1}:{rest:02d} {'AM' if hours < 12 else 'PM'}"


def duration(minutes: int) -> str:
    """2 hours 5 minutes; hours are not made into days. Raises Redraw when there is no time left."""
    if minutes <= 0:
        raise Redraw
    hours, rest = divmod(minutes, 60)
    parts = [plural(hours, "hour")] * bool(hours) + [plural(rest, "minute")] * bool(rest)
    return " ".join(parts)


def date(day: dt.date) -> str:
    """March 5, 2024."""
    return f"{MONTHS[day.month - 1]} {day.day}, {day.year}"


def month_year(months: int) -> str:
    """Months since January of year 0 as May 2022."""
    return f"{MONTHS[months % 12]} {months // 12}"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 11th."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def listed(names: list[str], last: str = "and") -> str:
    """a, b and c."""
    return f"{', '.join(names[:-1])} {last} {names[-1]}"
