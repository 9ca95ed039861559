"""Times, dates, durations, frequencies and numbers in free text, as values that compare exactly.

Plain Python without imports of ours: with verify.py it is copied into the lm-eval task folder, where it runs by itself.
"""

import datetime as dt
import re
from fractions import Fraction
from typing import Any

MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORDS = {word: i for i, word in enumerate(ONES)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
SECONDS = {"second": 1, "sec": 1, "s": 1, "minute": 60, "min": 60, "m": 60, "hour": 3600, "hr": 3600, "h": 3600,
           "day": 86400, "d": 86400, "week": 604800, "wk": 604800, "fortnight": 1209600}  # fmt: skip
IN_MONTHS = {"month": 1, "quarter": 3, "year": 12, "yr": 12, "decade": 120, "century": 1200, "centurie": 1200}
MONTH = "(?:" + "|".join(f"{name}|{name[:3]}\\.?" for name in MONTHS) + r"|sept\.?)"
ENDING = r"(?:st|nd|rd|th)?"
DATES = (
    re.compile(
        rf"\b(?P<m>{MONTH})\s+(?P<d>\d{{1,2}}){ENDING}\b(?:(?:,\s*|\s+)(?P<y>\d{{4}})\b)?", re.IGNORECASE
    ),
    re.compile(
        rf"\b(?P<d>\d{{1,2}}){ENDING}\s+(?:of\s+)?(?P<m>{MONTH})\b(?:(?:,\s*|\s+)(?P<y>\d{{4}})\b)?",
        re.IGNORECASE,
    ),
    re.compile(r"\b(?P<y>\d{4})[-/](?P<m>\d{1,2})[-/](?P<d>\d{1,2})\b"),
    re.compile(r"\b(?P<a>\d{1,2})[/.](?P<b>\d{1,2})[/.](?P<y>\d{4})\b"),
    re.compile(rf"\b(?P<m>{MONTH})(?:,\s*|\s+(?:of\s+)?)(?P<y>\d{{4}})\b", re.IGNORECASE),
)
CLOCK = re.compile(
    r"\b(?P<h>\d{1,2})(?:(?P<sep>[:.h])(?P<min>\d{2})(?::(?P<s>\d{2}))?)?\s*(?P<half>[ap]\.?\s?m\b\.?)|"
    r"\b(?P<h2>\d{1,2}):(?P<min2>\d{2})(?::(?P<s2>\d{2}))?(?!\s*hours?)\b|\b(?P<word>noon|midday|midnight)\b",
    re.IGNORECASE,
)
DIGITS = (
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\s+\d+/\d+|\d+/\d+|\d+(?:\.\d+)?|\b(?:"
    + "|".join(TENS)
    + r")(?:[- ](?:"
    + "|".join(ONES[1:10])
    + r"))?\b|\b(?:"
    + "|".join(ONES[::-1])
    + r")\b"
)
NUMBER = rf"(?:{DIGITS}|\bhalf an?\b|\ban?\b)"
"""Before a unit `a` is one."""
UNIT = r"(?:seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|wks?|fortnights?|months?|quarters?|years?|yrs?|decades?|centur(?:y|ies))"
PART = rf"(?P<n>{NUMBER})(?:\s+and\s+(?P<half>a\s+half))?[\s-]*(?P<u>{UNIT})\b(?:\s+and\s+(?P<half2>a\s+half)\b)?"
DURATION = re.compile(
    rf"(?<![\w/.:])(?:{re.sub(r'[?]P<[a-z0-9]+>', '?:', PART)}(?:,?\s+(?:and\s+)?(?={NUMBER}[\s-]*{UNIT}))?)+"
    r"|(?<![\w:.])\d+\s?h(?:\s?\d+\s?m(?:in)?)?\b",
    re.IGNORECASE,
)
ONE_PART = re.compile(PART, re.IGNORECASE)
RANGE = re.compile(rf"\b({NUMBER})\s*(?:-|\u2013|to|or|and)\s*(?={NUMBER}[\s-]*{UNIT}\b)", re.IGNORECASE)
RATE = re.compile(
    rf"\b(?:(?P<count>once|twice|thrice|{NUMBER}\s+times?)\s+)?(?:(?P<every>every|each)\s+(?P<other>other\s+|second\s+)?(?:(?P<n>{NUMBER})\s+)?"
    rf"(?P<u>{UNIT})|(?P<per>a|an|per|in\s+an?)\s+(?P<u2>{UNIT}))\b|\b(?P<word>hourly|daily|weekly|fortnightly|monthly|quarterly|yearly|annually)\b",
    re.IGNORECASE,
)
ADVERBS = {"hourly": "hour", "daily": "day", "weekly": "week", "fortnightly": "fortnight", "monthly": "month",
           "quarterly": "quarter", "yearly": "year", "annually": "year"}  # fmt: skip
PLAIN = re.compile(rf"(?<![\w./:-])-?(?:{DIGITS})(?:st|nd|rd|th)?(?![\w/:]|\.\d)", re.IGNORECASE)

Value = tuple[Any, ...]


def kind_of(text: str) -> str:
    """What a gold answer is: datetime, date, month-year, clock, frequency, duration, weekday, month, number or text."""
    for kind in (
        "datetime",
        "date",
        "month-year",
        "clock",
        "frequency",
        "duration",
        "weekday",
        "month",
        "number",
    ):
        found = values(kind, text)
        if len(found) == 1 and not normal_words(_without(kind, text)):
            return kind
    return "text"


def value_of(text: str) -> Value | None:
    """A gold answer's or a choice's value."""
    kind = kind_of(text)
    return values(kind, text)[0] if kind != "text" else None


def values(kind: str, text: str) -> list[Value]:
    """All values of a kind in a text, in order; comparable within the kind.

    date: (year or None, month, day); clock: seconds after midnight; duration: (months, seconds); frequency: (times per month, times per
    second); number: a fraction.
    """
    if kind == "datetime":
        days, clocks = values("date", text), values("clock", _blank(text, DATES))
        return [(*day, *clock) for day in days for clock in clocks] if days and clocks else []
    if kind in ("date", "month-year"):
        return [found for found, _ in _dates(text) if (len(found) == 2) == (kind == "month-year")]
    if kind == "clock":
        return [found for match in CLOCK.finditer(_blank(text, DATES[2:4])) if (found := _clock(match))]
    if kind == "duration":
        spans = [value for match in DURATION.finditer(text) if (value := _duration(match[0]))]
        # "3 to 5 days" holds two durations, of which only the second has a unit.
        return spans + [("range", m[1]) for m in RANGE.finditer(text) if not _one_number(text, m)]
    if kind == "frequency":
        return [found for match in RATE.finditer(text) if (found := _rate(match))]
    if kind == "weekday":
        return [
            (WEEKDAYS.index(m.lower()),)
            for m in re.findall(rf"\b({'|'.join(WEEKDAYS)})\b", text, re.IGNORECASE)
        ]
    if kind == "month":
        names = re.findall(rf"\b({'|'.join(MONTHS)})\b", text, re.IGNORECASE)
        # "It may be June": the verb is no month, unless it stands alone.
        names = [name for name in names if name != "may"] or names
        return [(MONTHS.index(name.lower()) + 1,) for name in names]
    return [(number,) for m in PLAIN.finditer(text) if (number := _number(m[0])) is not None]


def _without(kind: str, text: str) -> str:
    """What is left of a text when its values of a kind are taken out: nothing, for a gold answer of that kind."""
    patterns: dict[str, tuple[re.Pattern[str], ...]] = {
        "datetime": (*DATES, CLOCK, re.compile(r"\b(?:on|at)\b")), "date": DATES, "month-year": DATES, "clock": (CLOCK,),
        "frequency": (RATE,), "duration": (DURATION,), "number": (PLAIN,),
        "weekday": (re.compile("|".join(WEEKDAYS), re.IGNORECASE),), "month": (re.compile("|".join(MONTHS), re.IGNORECASE),),
    }  # fmt: skip
    return _blank(text, patterns[kind])


def _blank(text: str, patterns: tuple[re.Pattern[str], ...]) -> str:
    for pattern in patterns:
        text = pattern.sub(" ", text)
    return text


def _dates(text: str) -> list[tuple[Value, int]]:
    """(year or None, month, day), or (year, month); a date in figures that could be read in two ways is none."""
    found: list[tuple[Value, int]] = []
    for pattern in DATES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            year = int(parts["y"]) if parts.get("y") else None
            if parts.get("a"):
                first, second = int(parts["a"]), int(parts["b"])
                ways = {(m, d) for m, d in ((first, second), (second, first)) if _valid(year, m, d)}
                if len(ways) == 1:
                    found.append(((year, *ways.pop()), match.start()))
            else:
                name = parts["m"].lower()
                month = (
                    int(name)
                    if name.isdigit()
                    else next(i for i, m in enumerate(MONTHS, 1) if m.startswith(name[:3]))
                )
                if parts.get("d") is None:
                    found.append(((year, month), match.start()))
                elif _valid(year, month, int(parts["d"])):
                    found.append(((year, month, int(parts["d"])), match.start()))
        text = pattern.sub(lambda match: " " * len(match[0]), text)
    return sorted(found, key=lambda item: item[1])


def _valid(year: int | None, month: int, day: int) -> bool:
    try:
        dt.date(2000 if year is None else year, month, day)
    except ValueError:
        return False
    return True


def _clock(match: re.Match[str]) -> Value | None:
    if match["word"]:
        return (0,) if match["word"].lower() == "midnight" else (12 * 3600,)
    if match["half"]:
        hour, minute, second = int(match["h"]), int(match["min"] or 0), int(match["s"] or 0)
        if not 1 <= hour <= 12 or minute > 59 or second > 59:
            return None
        return (3600 * (hour % 12 + 12 * (match["half"][0].lower() == "p")) + 60 * minute + second,)
    hour, minute, second = int(match["h2"]), int(match["min2"]), int(match["s2"] or 0)
    return (3600 * hour + 60 * minute + second,) if hour < 24 and minute < 60 and second < 60 else None


def _duration(text: str) -> Value | None:
    compact = re.fullmatch(r"(\d+)\s?h(?:\s?(\d+)\s?m(?:in)?)?", text.strip(), re.IGNORECASE)
    if compact:
        return (Fraction(0), Fraction(3600 * int(compact[1]) + 60 * int(compact[2] or 0)))
    months, seconds = Fraction(0), Fraction(0)
    for part in ONE_PART.finditer(text):
        number = _number(part["n"])
        if number is None:
            return None
        number += Fraction(1, 2) * bool(part["half"] or part["half2"])
        in_months, in_seconds = _unit(part["u"])
        months, seconds = months + number * in_months, seconds + number * in_seconds
    return (months, seconds)


def _unit(word: str) -> tuple[int, int]:
    name = word.lower().rstrip("s").replace("century", "centurie").replace("centuriee", "centurie")
    return IN_MONTHS.get(name, 0), SECONDS.get(name, 0)


def single_unit(gold: str) -> bool:
    return len(ONE_PART.findall(gold)) == 1


def units(text: str) -> set[tuple[int, int]]:
    """Units of the durations in a text, each as (months, seconds)."""
    return {_unit(part["u"]) for part in ONE_PART.finditer(text)}


def _one_number(text: str, match: re.Match[str]) -> bool:
    """`2 hours and 5 minutes` has an `and` before a number too, but a unit before it; `thirty-five` is one number."""
    hyphen = match[0].rstrip().endswith("-") and match[1].lower() in TENS
    return hyphen or re.search(rf"{UNIT}\s*$", text[: match.end(1)]) is not None


def _rate(match: re.Match[str]) -> Value | None:
    """(times per month, times per second) of a span; one of them is 0."""
    count, number = Fraction(1), Fraction(1)
    if match["word"]:
        unit = ADVERBS[match["word"].lower()]
    else:
        words = (match["count"] or "once").lower()
        counted = {"once": Fraction(1), "twice": Fraction(2), "thrice": Fraction(3)}.get(words)
        times = counted if counted is not None else _number(re.sub(r"\s+times?$", "", words))
        if times is None or (match["per"] and not match["count"]):
            return None
        count = times
        every = _number(match["n"]) if match["n"] else None
        number = every if every is not None else Fraction(2 if match["other"] else 1)
        unit = match["u"] or match["u2"]
    months, seconds = _unit(unit)
    if number == 0:
        return None
    return (
        count / (number * months) if months else Fraction(0),
        count / (number * seconds) if seconds else Fraction(0),
    )


def _number(text: str) -> Fraction | None:
    """1,234 or 12.5 or 1/2 or 1 1/2 or twenty-one or a or 15th."""
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", text.lower().strip().replace(",", ""))
    if text in ("a", "an"):
        return Fraction(1)
    if text in ("half a", "half an"):
        return Fraction(1, 2)
    mixed = re.fullmatch(r"(\d+)\s+(\d+)/(\d+)", text)
    try:
        if mixed:
            return int(mixed[1]) + Fraction(int(mixed[2]), int(mixed[3]))
        words = re.split(r"[- ]", text)
        if all(word in NUMBER_WORDS for word in words):
            return Fraction(sum(NUMBER_WORDS[word] for word in words))
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def normal_words(text: str) -> str:
    """Lower case, letters and digits only, without articles."""
    words = re.sub(r"[^a-z0-9:/.+-]+", " ", text.lower()).split()
    words = [word.strip(".:-/") for word in words]
    return " ".join(word for word in words if word and word not in ("the", "a", "an"))
