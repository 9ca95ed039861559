"""A second solver of the temporal questions: it reads the question's text and computes by other means (minute by minute, day by day,
dateutil, all orders), so that an error of a generator's arithmetic or of its wording shows as a difference."""

import calendar
import re
from datetime import date, datetime, timedelta
from itertools import permutations, product

from dateutil import parser, rrule, zoneinfo
from dateutil.relativedelta import relativedelta

ZONES = {
    "Tokyo": "Asia/Tokyo", "Delhi": "Asia/Kolkata", "Nairobi": "Africa/Nairobi", "Dubai": "Asia/Dubai", "Bangkok": "Asia/Bangkok",
    "Singapore": "Asia/Singapore", "Kathmandu": "Asia/Kathmandu", "Lagos": "Africa/Lagos", "Accra": "Africa/Accra",
    "Brisbane": "Australia/Brisbane", "Honolulu": "Pacific/Honolulu", "Phoenix": "America/Phoenix", "Bogota": "America/Bogota",
    "Buenos Aires": "America/Argentina/Buenos_Aires", "La Paz": "America/La_Paz",
}  # fmt: skip
AMOUNTS = {
    "a quarter of an hour": 15,
    "half an hour": 30,
    "three quarters of an hour": 45,
    "one hour": 60,
    "an hour and a half": 90,
}
WORDS = [
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
]
EARLIER = ("brought forward", "moved up", "advanced")
DAYS = list(calendar.day_name)


def grab(pattern, text):
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return found.groups() if len(found.groups()) > 1 else found[1]


def clock(text):
    return parser.parse(text, default=datetime(2001, 6, 5))


def minutes(text):
    """'2 hours 5 minutes', or a phrase."""
    if text in AMOUNTS:
        return AMOUNTS[text]
    total = 0
    for number, unit in re.findall(r"(\d+) (hour|minute)", text):
        total += int(number) * {"hour": 60, "minute": 1}[unit]
    return total


def say24(moment):
    return moment.strftime("%H:%M")


def say12(moment):
    return moment.strftime("%I:%M %p").lstrip("0")


def say_date(day):
    return f"{day.strftime('%B')} {day.day}, {day.year}"


def say_minutes(count):
    hours = 0
    while count >= 60:
        hours, count = hours + 1, count - 60
    parts = [f"{n} {unit}{'s' * (n != 1)}" for n, unit in ((hours, "hour"), (count, "minute")) if n]
    return " ".join(parts)


def adjust(q, say):
    amount, word, start = (
        grab(r"is it (.+) (after|before) (.+)\?$", q) if "is it" in q else (None, None, None)
    )
    if amount is None:
        start, amount, word = grab(r"shows (.+?)\. .* (?:show) (.+) (later|earlier)\?", q)
    step = 1 if word in ("after", "later") else -1
    moment = clock(start)
    for _ in range(minutes(amount)):
        moment += timedelta(minutes=step)
    return say(moment)


def hour_adjustment_24h(q):
    return adjust(q, say24)


def hour_adjustment_12h(q):
    return adjust(q, say12)


def shift_short(q):
    start, verb, amount = (
        grab(r"set for (.+?) and has been (.+?) by (.+?)\.|$^", q) if " by " in q else (None, None, None)
    )
    moment = clock(start)
    for _ in range(minutes(amount)):
        moment += timedelta(minutes=-1 if verb in EARLIER else 1)
    return say12(moment)


def time_computation(q):
    start, end = re.findall(r"\d+:\d\d [AP]M", q)
    moment, count = clock(start), 0
    while say12(moment) != end or count == 0:
        moment, count = moment + timedelta(minutes=1), count + 1
    assert (moment.date() > clock(start).date()) == ("next day" in q)
    return say_minutes(count)


def time_zone_conversion(q):
    here, there = grab(r"^(.+?) is at .* and (.+?) at UTC", q)
    when = parser.parse(" ".join(grab(r"It is (\d\d:\d\d) on (.+?) in", q)))
    files = zoneinfo.get_zonefile_instance()
    recent = datetime(2023, 3, 7, 12)
    for name, shown in re.findall(r"([A-Z][A-Za-z ]+?) (?:is )?at (UTC[+-][\d:]+)", q.replace(" and ", " ")):
        offset = files.get(ZONES[name]).utcoffset(recent)
        sign, hours, rest = re.fullmatch(r"UTC([+-])(\d+)(?::(\d+))?", shown).groups()
        assert offset == (1 if sign == "+" else -1) * timedelta(hours=int(hours), minutes=int(rest or 0))
    gap = files.get(ZONES[there]).utcoffset(recent) - files.get(ZONES[here]).utcoffset(recent)
    local = when + gap
    return f"{say24(local)} on {say_date(local.date())}"


def arithmetic_application(q):
    if "bus" in q:
        start, gap, number = grab(r"leaves at (.+?); .* every (\d+) minutes. When does the (\d+)", q)
        moment = clock(start)
        for _ in range(int(number) - 1):
            moment += timedelta(minutes=int(gap))
        return say12(moment)
    if "machine" in q:
        parts, span, wanted = map(int, grab(r"makes (\d+) parts? in (\d+) minutes?. .* for (\d+) parts", q))
        made = total = 0
        while made < wanted:
            made, total = made + parts, total + span
        return say_minutes(total)
    distance, speed = map(int, grab(r"drives (\d+) kilometres at a steady (\d+)", q))
    (count,) = [m for m in range(1, 3000) if m * speed == 60 * distance]
    return say_minutes(count)


def year_shift(q):
    numbers = list(map(int, re.findall(r"\d+", q)))
    if "founded" in q:
        year, age = numbers
        return str((date(year, 1, 1) + relativedelta(years=age if "was founded in" in q else -age)).year)
    age, year = numbers
    return str((date(year, 1, 1) + relativedelta(years=age if " after " in q else -age)).year)


def month_shift(q):
    number = int(re.search(r"\d+", q)[0])
    (name,) = [m for m in calendar.month_name[1:] if re.search(rf"\b{m}\b", q)]
    back = " ago" in q or " before " in q
    day = date(2000, list(calendar.month_name).index(name), 1) + relativedelta(
        months=-number if back else number
    )
    return calendar.month_name[day.month]


def date_computation(q):
    start = parser.parse(grab(r"([A-Z][a-z]+ \d+, \d{4})", q)).date()
    count = int(grab(r"(\d+) days", q))
    back = "before" in q or "earlier" in q
    return say_date(start + relativedelta(days=-count if back else count))


def week_identification(q):
    return str(int(parser.parse(grab(r"([A-Z][a-z]+ \d+, \d{4})", q)).strftime("%V")))


def shift_medium(q):
    start, verb, amount = (
        grab(r"for a (\w+) and has been (.+?) by (.+?)\. ", q)
        if " by " in q
        else grab(r"for a (\w+) and has been (moved up)(.*)", q)
    )
    words = {word: i for i, word in enumerate(WORDS)}
    count = 0
    for number, unit in re.findall(r"(\w+) (week|day)", amount):
        count += (words[number] if number in words else int(number)) * {"week": 7, "day": 1}[unit]
    day = date(2024, 1, 1 + DAYS.index(start))
    return DAYS[(day + timedelta(days=count * (-1 if verb in EARLIER else 1))).weekday()]


def shift_long(q):
    start, verb, amount = grab(r"planned for (.+?) and has been (.+?) by (.+?)\. ", q)
    named = {"half a year": 6, "a year and a half": 18, "two and a half years": 30}
    if amount in named:
        step = relativedelta(months=named[amount])
    else:
        number, unit = grab(r"(\d+) (month|quarter|year)", amount)
        step = relativedelta(
            **({"months": 3 * int(number)} if unit == "quarter" else {unit + "s": int(number)})
        )
    day = parser.parse(f"1 {start}").date()
    return ((day - step) if verb in EARLIER else (day + step)).strftime("%B %Y")


def _julian():
    """Gregorian date -> Julian date as (year, month, day), by stepping through both calendars from the day of the change."""
    found, year, month, day = {}, 1582, 10, 5
    today = date(1582, 10, 15)
    while today.year < 2101:
        found[today] = (year, month, day)
        today += timedelta(days=1)
        last = (
            29 if month == 2 and year % 4 == 0 else 28 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
        )
        day += 1
        if day > last:
            day, month = 1, month + 1
        if month > 12:
            month, year = 1, year + 1
    return found


JULIAN = _julian()
GREGORIAN = {value: key for key, value in JULIAN.items()}


def shift_calendar(q):
    shown = parser.parse(grab(r"([A-Z][a-z]+ \d+, \d{4})", q)).date()
    if re.search(r"(?:of the|in the) Gregorian calendar\?$", q) and "Julian" in q.split("in the")[0]:
        return say_date(GREGORIAN[shown.year, shown.month, shown.day])
    year, month, day = JULIAN[shown]
    return f"{calendar.month_name[month]} {day}, {year}"


def duration_computation(q):
    first, second, rest = grab(r"takes (.+?), the second part (.+?) and the third part (.+?)\. How", q)
    parts = [minutes(first), minutes(second)]
    third = {"twice": [1, 1], "three times": [1, 1, 1]}
    if "together" in rest:
        parts += parts
    else:
        (factor,) = [f for word, f in third.items() if rest.startswith(word)]
        parts += [parts[1] for _ in factor]
    return say_minutes(sum(parts))


def duration_multistep_comparison(q):
    told, asked = q.lower().split(". which takes the ")
    known = {}
    for part in re.split(r", and |, ", told):
        name, rest = part.split(" takes ")
        known[name] = rest
    solved = {}
    while len(solved) < 3:
        for name, rest in known.items():
            others = [o for o in solved if rest.endswith(o)]
            if not any(rest.endswith(o) for o in known):
                solved[name] = minutes(rest)
            elif others:
                base = solved[others[0]]
                if "twice" in rest:
                    solved[name] = base + base
                elif "half as" in rest:
                    solved[name] = base / 2
                else:
                    solved[name] = base + minutes(rest) * (1 if "longer" in rest else -1)
    order = sorted(solved, key=solved.get)
    return order[-1 if asked.startswith("longest") else 0]


SECONDS = {
    unit: timedelta(**{f"{unit}s": 1}).total_seconds() for unit in ("second", "minute", "hour", "day", "week")
}


def amount(text):
    number, unit = grab(r"(\d+) (\w+?)s?$", text)
    return int(number) * SECONDS[unit]


def duration_direct_comparison(q):
    word, first, second = grab(r"Which is (longer|shorter): (.+?) or (.+?), or", q)
    a, b = amount(first), amount(second)
    if a == b:
        return "they are equally long"
    return first if (a > b) == (word == "longer") else second


def duration_analogy(q):
    first, second, third = grab(r"^(.+?) is to (.+?) as (.+?) is to what", q)
    number, unit = grab(r"(\d+) (\w+?)s?$", third)
    ratio = amount(second) / amount(first)
    value = round(int(number) * ratio)
    return f"{value} {unit}{'s' * (value != 1)}"


def duration_facts(q):
    if "have?" in q:
        month, year = grab(r"does (\w+) (\d+) have", q)
        start = parser.parse(f"1 {month} {year}").date()
        return f"{(start + relativedelta(months=1) - start).days} days"
    groups = re.search(r"How many (\w+)s are there in (\d+) (\w+)\?", q) or re.search(
        r"(?P<n>\d+) (?P<l>\w+) are how many (?P<s>\w+)s\?", q
    )
    small, count, large = (groups["s"], groups["n"], groups["l"]) if "are how many" in q else groups.groups()
    large = {"centuries": "century"}.get(large, large.removesuffix("s"))
    months = {"month": 1, "year": 12, "decade": 120, "century": 1200}
    table = months if small in months else SECONDS
    value = sum(round(table[large] / table[small]) for _ in range(int(count)))
    return f"{value} {small}s"


def frequency_facts(q):
    if "leap" in q:
        first, last = map(int, re.findall(r"\d{4}", q))
        return str(calendar.leapdays(first, last + 1))
    day, start, end = grab(r"many (\w+?)s are there from \w+, (.+?), through (.+?), both", q)
    rule = rrule.rrule(
        rrule.WEEKLY, byweekday=DAYS.index(day), dtstart=parser.parse(start), until=parser.parse(end)
    )
    assert parser.parse(start).strftime("%A") == grab(r"from (\w+),", q)
    return str(len(list(rule)))


HORIZON = 2 * 4 * 3 * 5 * 7 * 11 * 3 * 2  # days: a multiple of all periods that occur


def frequency_comparison(q):
    told, asked = q.split(". Who does it ")
    times = {}
    for part in re.split(r", | and (?=[A-Z])", told):
        name = part.split()[0]
        if m := re.search(r"every (\d+) days", part):
            times[name] = HORIZON / int(m[1])
        elif m := re.search(r"every (\d+) hours", part):
            times[name] = HORIZON * 24 / int(m[1])
        elif m := re.search(r"(\d+) times a week", part):
            times[name] = HORIZON / 7 * int(m[1])
        else:
            count, weeks = grab(r"(\d+) times in (\d+) weeks", part)
            times[name] = HORIZON / 7 / int(weeks) * int(count)
    return (max if asked.startswith("most") else min)(times, key=times.get)


def frequency_computation(q):
    if "tablet" in q:
        hours, days = map(int, grab(r"every (\d+) hours, .* in (\d+) days", q))
        return str(sum(1 for hour in range(24 * days) if hour % hours == 0))
    each, weeks = map(int, grab(r"(\d+) times a week. .* in (\d+) weeks", q))
    return str(sum(each for _ in range(weeks)))


def frequency_application(q):
    if "buses" in q:
        start, first, second = grab(
            r"together at (.+?)\. One leaves every (\d+) minutes, the other every (\d+)", q
        )
        moment, count = clock(start), 0
        while count == 0 or count % int(first) or count % int(second):
            moment, count = moment + timedelta(minutes=1), count + 1
        return say12(moment)
    first, second = map(
        int, re.findall(r"every (\d+) days?|and \w+ every (\d+)", q) and re.findall(r"every (\d+)", q)
    )
    return f"{next(d for d in range(1, 2000) if d % first == 0 and d % second == 0)} days"


RELATIONS = {
    # (sign of a-c, a-d, b-c, b-d) of [a, b] and [c, d]
    (-1, -1, -1, -1): "before", (-1, -1, 0, -1): "immediately before", (-1, -1, 1, -1): "overlaps the start of",
    (0, -1, 1, -1): "begins together with but ends before", (1, -1, 1, -1): "happens during",
    (1, -1, 1, 0): "ends together with but begins after", (1, 1, 1, 1): "after", (1, 0, 1, 1): "immediately after",
    (1, -1, 1, 1): "overlaps the end of", (0, -1, 1, 1): "begins together with but ends after", (-1, -1, 1, 1): "contains",
    (-1, -1, 1, 0): "ends together with but begins before",
}  # fmt: skip


def relation(q):
    spans = {name: (s, e) for name, s, e in re.findall(r"The (\w+) lasts from (\d\d:\d\d) to (\d\d:\d\d)", q)}
    one, two = grab(r"How is the (\w+) related to the (\w+)\?", q)
    (a, b), (c, d) = spans[one], spans[two]  # HH:MM of one day sort as text
    return RELATIONS[tuple((x > y) - (x < y) for x, y in product((a, b), (c, d)))]


def temporal_nli(q):
    premise, hypothesis = grab(r"Premise: (.+) Hypothesis: (.+?\.) Is", q)
    if "lasted" in premise:

        def allowed(text):
            word, amount_ = grab(r"lasted (more|less) than (.+)\.", text)
            return {
                m
                for m in range(1, 24 * 60)
                if (m > minutes(amount_) if word == "more" else m < minutes(amount_))
            }

        known, claim = allowed(premise), allowed(hypothesis)
        return "entailment" if known <= claim else "neutral" if known & claim else "contradiction"

    def facts(text):
        found = re.findall(r"The (\w+) took place (before|after) the (\w+)\.", text)
        return [(a, b) if word == "before" else (b, a) for a, word, b in found]

    names = {name for pair in facts(premise) + facts(hypothesis) for name in pair}
    ((x, y),) = facts(hypothesis)
    worlds = [
        p for p in permutations(sorted(names)) if all(p.index(a) < p.index(b) for a, b in facts(premise))
    ]
    holds = [w.index(x) < w.index(y) for w in worlds]
    return "entailment" if all(holds) else "neutral" if any(holds) else "contradiction"


def ambiguity_interpretation(q):
    if "form" in q:
        order, shown = grab(r"dates as (\S+)\. Which date is (\S+) on", q)
        day = datetime.strptime(shown, "%d/%m/%Y" if order == "day/month/year" else "%m/%d/%Y")
        return say_date(day)
    phrase, part = grab(r"'(.+) (in the \w+|at night)'", q)
    hours = {
        "in the morning": range(12),
        "in the afternoon": range(12, 17),
        "in the evening": range(17, 24),
        "at night": range(1),
    }[part]
    names = {5: "five", 10: "ten", 15: "a quarter", 20: "twenty", 25: "twenty-five"}
    for hour, minute in product(hours, range(0, 60, 5)):
        after = WORDS[(hour % 12) or 12]
        to = WORDS[((hour + 1) % 12) or 12]
        said = (
            f"half past {after}"
            if minute == 30
            else f"{names[minute]} past {after}"
            if minute in names
            else f"{names.get(60 - minute)} to {to}"
        )
        if said == phrase and minute and not (hour == 0 and part != "at night"):
            return say12(datetime(2000, 1, 1, hour, minute))
    raise AssertionError(q)


def duration_reading(q):
    asked = grab(r"How long did the (.+) last\?$", q)
    first, a, b = grab(r"with (.+?) from (\d\d:\d\d) to (\d\d:\d\d)", q)
    second, c, d = grab(r"Then came (.+?), which started at (\d\d:\d\d) and was over at (\d\d:\d\d)", q)
    span, third = grab(r"spent (.+?) on (.+?)\. How", q)
    spans = {first: (a, b), second: (c, d)}
    if asked == third:
        return span
    start, end = map(clock, spans[asked])
    return say_minutes(round((end - start).total_seconds() / 60))


def frequency_reading(q):
    told, asked = q.split(". How often does ")
    verb = asked.split(" ", 1)[1].rstrip("?")
    forms = {
        "swim": "swims",
        "visit": "visits",
        "clean": "cleans",
        "call": "calls",
        "check": "checks",
        "bake": "bakes",
        "go": "goes",
        "mow": "mows",
    }
    words = verb.split(" ")
    third = " ".join([forms[words[0]], *words[1:]])
    return grab(
        rf"{third} (.+?)(?:, (?:{'|'.join(forms.values())})\b| and (?:{'|'.join(forms.values())})\b|$)", told
    )


def typical_time_reading(q):
    one, start, two, gap, word, three, other, asked = re.search(
        r"the ([a-z ]+?) opens at (.+? [AP]M), the ([a-z ]+?) (\d.+?) (later|earlier) than that, and the ([a-z ]+?) at (.+? [AP]M)\. At what time does the ([a-z ]+?) open", q
    ).groups()  # fmt: skip
    second = clock(start) + timedelta(minutes=minutes(gap) * (1 if word == "later" else -1))
    return {one: start, two: say12(second), three: other}[asked]
