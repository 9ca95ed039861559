"""Loader and grader of the `sciqa-dcf` tasks, for lm-evaluation-harness.

This file is written beside the tasks as `utils.py` and needs nothing but Python (and the harness's own `datasets`): it finds the number and the
unit that an answer gives, in the usual notations (1.9e-3, 1.9 x 10^-3, 1.9·10⁻³, LaTeX), converts the unit by the table below, and compares.
"""

# ruff: noqa: RUF001 (the point of the table of notations is to read all of these signs)

import json
import math
import re
from pathlib import Path

TOLERANCE = 0.02
LOOSE = 0.10

NONE = (0, 0, 0, 0, 0, 0)
# Unit -> factor to the base units cm, g, s, K, rad, G, and its powers of them.
BASES = {
    "cm": (1.0, (1, 0, 0, 0, 0, 0)),
    "g": (1.0, (0, 1, 0, 0, 0, 0)),
    "s": (1.0, (0, 0, 1, 0, 0, 0)),
    "K": (1.0, (0, 0, 0, 1, 0, 0)),
    "rad": (1.0, (0, 0, 0, 0, 1, 0)),
    "G": (1.0, (0, 0, 0, 0, 0, 1)),
}
PREFIXES = {
    "": 1.0, "f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "c": 1e-2, "d": 1e-1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
}  # fmt: skip
LONG_PREFIXES = {
    "nano": "n",
    "micro": "u",
    "milli": "m",
    "centi": "c",
    "deci": "d",
    "kilo": "k",
    "mega": "M",
    "giga": "G",
}
LENGTH, MASS, TIME, ENERGY, POWER = (
    (1, 0, 0, 0, 0, 0),
    (0, 1, 0, 0, 0, 0),
    (0, 0, 1, 0, 0, 0),
    (2, 1, -2, 0, 0, 0),
    (2, 1, -3, 0, 0, 0),
)
PREFIXED = {
    "m": (100.0, LENGTH), "pc": (3.0856775814913674e18, LENGTH), "g": (1.0, MASS), "s": (1.0, TIME), "yr": (31557600.0, TIME),
    "J": (1e7, ENERGY), "erg": (1.0, ENERGY), "eV": (1.602176634e-12, ENERGY), "W": (1e7, POWER), "Hz": (1.0, (0, 0, -1, 0, 0, 0)),
    "G": (1.0, (0, 0, 0, 0, 0, 1)), "T": (1e4, (0, 0, 0, 0, 0, 1)), "Jy": (1e-23, (0, 1, -2, 0, 0, 0)), "K": (1.0, (0, 0, 0, 1, 0, 0)),
    "rad": (1.0, (0, 0, 0, 0, 1, 0)), "Pa": (10.0, (-1, 1, -2, 0, 0, 0)), "N": (1e5, (1, 1, -2, 0, 0, 0)),
}  # fmt: skip
PLAIN = {
    "au": (1.495978707e13, LENGTH), "lyr": (9.4607304725808e17, LENGTH), "Msun": (1.988409870698051e33, MASS), "Lsun": (3.828e33, POWER),
    "Rsun": (6.957e10, LENGTH), "min": (60.0, TIME), "hr": (3600.0, TIME), "day": (86400.0, TIME), "dyn": (1.0, (1, 1, -2, 0, 0, 0)),
    "deg": (math.pi / 180, (0, 0, 0, 0, 1, 0)), "arcmin": (math.pi / 10800, (0, 0, 0, 0, 1, 0)), "arcsec": (math.pi / 648000, (0, 0, 0, 0, 1, 0)),
    "sr": (1.0, (0, 0, 0, 0, 2, 0)), "%": (0.01, (0, 0, 0, 0, 0, 0)),
}  # fmt: skip
UNITS = {
    prefix + name: (factor * value, powers)
    for name, (value, powers) in PREFIXED.items()
    for prefix, factor in PREFIXES.items()
} | PLAIN
NAMES = {
    "gauss": "G", "Gauss": "G", "tesla": "T", "Tesla": "T", "teslas": "T", "meter": "m", "meters": "m", "metre": "m", "metres": "m", "gram": "g", "grams": "g", "second": "s",
    "seconds": "s", "sec": "s", "parsec": "pc", "parsecs": "pc", "joule": "J", "joules": "J", "ergs": "erg", "watt": "W", "watts": "W",
    "kelvin": "K", "kelvins": "K", "year": "yr", "years": "yr", "radian": "rad", "radians": "rad", "jansky": "Jy", "janskys": "Jy",
    "electronvolt": "eV", "electronvolts": "eV", "hertz": "Hz", "pascal": "Pa", "pascals": "Pa",
}  # fmt: skip
WORDS = {
    "AU": "au", "ly": "lyr", "degree": "deg", "degrees": "deg", "arcminutes": "arcmin", "arcminute": "arcmin", "arcseconds": "arcsec",
    "arcsecond": "arcsec", "steradian": "sr", "steradians": "sr", "percent": "%", "M_sun": "Msun", "L_sun": "Lsun", "days": "day", "dyne": "dyn",
}  # fmt: skip
UNITS |= {word: UNITS[name] for word, name in WORDS.items()}
COUNTED = ("particle", "molecule", "atom", "nucleus", "nuclei", "proton", "electron", "ion", "grain")
"""What is counted has no dimension: 3e22 molecules cm^-2."""
UNITS |= {word + ending: (1.0, NONE) for word in COUNTED for ending in ("", "s")}
UNITS |= {word: UNITS[name] for word, name in NAMES.items()}
UNITS |= {
    long + word: UNITS[short + name] for word, name in NAMES.items() for long, short in LONG_PREFIXES.items()
}
# mGauss, nTesla
UNITS |= {
    short + word: UNITS[short + name] for word, name in NAMES.items() if name in "GT" for short in PREFIXES
}

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
NUMBER = re.compile(
    r"(?<![\w.^])(?<!\^[-+])(?:"
    r"(?P<mantissa>[+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:[eE](?P<e>[+-]?\d{1,6}))?(?:\s*±\s*[\d.]+(?:[eE][+-]?\d+)?)?"
    r"(?:\s*(?:[x*]|\*\*)\s*10\s*(?:\^|\*\*)\s*\(?\s*(?P<power>[+-]?\d{1,6})\s*\)?)?"
    r")"
)
BARE_POWER = re.compile(r"(?<![\w.*^])(?P<sign>[+-]?)10\s*(?:\^|\*\*)\s*\(?\s*(?P<power>[+-]?\d{1,6})\s*\)?")
TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_%]+)(?:\s?(?:\^|\*\*)\s*\(?\s*(?P<caret>[+-]?\d)(?!\d)\s*\)?|(?P<digits>[+-]?\d)(?!\d))?)"
)
MARKER = re.compile(r"(?:final answer|answer is|answer\s*:|####|\\boxed)", re.IGNORECASE)
Unit = tuple[float, tuple[int, ...]]


def plain(text: str) -> str:
    """LaTeX and Unicode notations as ASCII."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda run: "^" + run[0].translate(SUPERSCRIPTS), text)
    text = re.sub(r"\^\s*\{\s*([-+−–]?\s*\d+)\s*\}", r"^\1", text)
    text = re.sub(r"\\(?:,|;|!|:| |quad\b|left\b|right\b)|[\u00a0\u2009\u202f]", " ", text)
    text = re.sub(r"\\(?:text|mathrm|rm|mathbf|boldsymbol|operatorname)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/(\2)", text)
    text = re.sub(r"([ML])\$?_?\{?\s*(?:\\odot|☉|⊙|sun)\s*\}?", r"\1sun", text)
    text = re.sub(r"solar[\s-]+mass(?:es)?", "Msun", text, flags=re.IGNORECASE)
    text = re.sub(r"solar[\s-]+luminosit(?:y|ies)", "Lsun", text, flags=re.IGNORECASE)
    text = re.sub(r"astronomical\s+units?", "au", text, flags=re.IGNORECASE)
    text = re.sub(r"light[\s-]+years?", "lyr", text, flags=re.IGNORECASE)
    text = re.sub(r"\^?\{?\s*\\circ\s*\}?|°", " deg ", text)
    text = re.sub(r"\\times|\\cdot|\\ast|[×·⋅∗✕]", "*", text)
    text = re.sub(r"\\approx|\\simeq|\\sim|[≈≃≅∼]", "=", text)
    text = re.sub(r"\\pm|\+/-", "±", text)
    text = re.sub(r"\\mu\s*|[µμ]", "u", text)
    text = (
        re.sub(r"[−–]", "-", text).replace("$", " ").replace("\\%", "%").replace("{,}", ",").replace("~", " ")
    )
    text = re.sub(rf"\b(?:hydrogen|H_?\{{?2?\}}?)\s+(?=(?:{'|'.join(COUNTED)})s?\b)", "", text)
    text = re.sub(r"(?<![\d.])(\d{1,3}(?:,\d{3})+)(?!\d)", lambda run: run[0].replace(",", ""), text)
    # 12 000, but not the factors of a product: 10^3 500, 2 100e3
    text = re.sub(
        r"(?<![\w.^])(?<!\^[-+])([1-9]\d{0,2}(?: \d{3})+)(?!\d|[eE][-+]?\d|\s*\^)",
        lambda run: run[0].replace(" ", ""),
        text,
    )
    text = re.sub(rf"\b({'|'.join(LONG_PREFIXES)})-(?=[A-Za-z])", r"\1", text)
    text = re.sub(
        r"\b(square|cubic)\s+([A-Za-z]+)", lambda run: f"{run[2]}^{2 if run[1] == 'square' else 3}", text
    )
    text = re.sub(r"(?<=\d)\s*[X]\s*(?=10\b)", "*", text)
    return re.sub(r"\\boxed\s*\{|\\[()\[\]]", lambda run: run[0] if "boxed" in run[0] else " ", text)


def read_unit(text: str, start: int = 0) -> tuple[Unit | None, int]:
    """The unit that begins at `start`, as far as its parts are known, and where it ends; None: there is none."""
    factor, powers, place, found = 1.0, list(NONE), start, False
    below = False  # one denominator: everything in the brackets after "/", or the next part only
    bracket = False
    while True:
        separator = re.compile(r"\s*(?P<over>/|per\b)?\s*(?:\*|\.(?=\w))?\s*(?P<open>\()?").match(text, place)
        assert separator is not None
        over = separator["over"] is not None
        if separator["open"] and not over:
            break
        token = TOKEN.match(text, separator.end())
        if token is None or token["name"] not in UNITS:
            break
        value, own = UNITS[token["name"]]
        power = int(token["caret"] or token["digits"] or 1)
        sign = -1 if over or (below and bracket) else 1
        factor *= value ** (sign * power)
        powers = [a + sign * power * b for a, b in zip(powers, own, strict=True)]
        place, found = token.end(), True
        if over:
            below, bracket = True, separator["open"] is not None
        if bracket:
            close = re.compile(r"\s*\)").match(text, place)
            if close:
                place, below, bracket = close.end(), False, False
    return ((factor, tuple(powers)) if found else None), place


def unit_of(text: str) -> Unit:
    """A whole unit, such as 'km s-1' or 'erg/cm^3'; '' has no dimension. Raises ValueError when it is not understood."""
    text = plain(text).strip()
    if not text:
        return 1.0, NONE
    unit, end = read_unit(text)
    if unit is None or text[end:].strip():
        raise ValueError(f"unit '{text}' is not understood")
    return unit


def quantities(text: str) -> list[tuple[float, Unit, bool]]:
    """All numbers with their units, in order, in text that `plain` has been through; True: an equals sign stands before it."""
    found: list[tuple[float, Unit, bool]] = []
    place = 0
    while True:
        matches = [match for match in (BARE_POWER.search(text, place), NUMBER.search(text, place)) if match]
        if not matches:
            return found
        match = min(matches, key=lambda item: item.start())
        if match.re is BARE_POWER:
            value = float(f"{match['sign']}1e{match['power']}")
        else:
            # As text: a power beyond what a float holds gives inf or 0, not an error.
            value = float(f"{match['mantissa']}e{int(match['e'] or 0) + int(match['power'] or 0)}")
        unit, end = read_unit(text, match.end())
        equals = re.search(r"=\s*(?:\\boxed\s*\{)?\s*$", text[: match.start()]) is not None
        found.append((value, unit or (1.0, NONE), equals))
        place = max(end, match.end())


def parse(response: str, unit: str) -> float | None:
    """The answer in `unit`: the quantity of the right dimension that the response ends on; None: there is none.

    Of several, the first after the last 'answer is', 'Answer:', '####' or \\boxed counts; else the last after an equals sign; else the last.
    """
    factor, powers = unit_of(unit)
    text = plain(response)
    for part, first in ((MARKER.split(text)[-1], True), (text, False)):
        if first and not MARKER.search(text):
            continue
        found = [
            (value * own[0] / factor, equals) for value, own, equals in quantities(part) if own[1] == powers
        ]
        if found and first:
            return found[0][0]
        if found:
            return ([value for value, equals in found if equals] or [value for value, _ in found])[-1]
    return None


def grade(response: str, value: float, unit: str) -> dict[str, float]:
    """acc: within 2 %; acc_10: within 10 %; parsed: a number with a unit of the right dimension was given."""
    given = parse(response, unit)
    if given is None or not math.isfinite(given):
        return {"acc": 0.0, "acc_10": 0.0, "parsed": 0.0}
    error = abs(given / value - 1)
    return {"acc": float(error <= TOLERANCE), "acc_10": float(error <= LOOSE), "parsed": 1.0}


# ---------------------------------------------------------------- called by the harness


def load(split: str, **_: object) -> object:
    """The split's items, and the training items for few-shot prompts, from the folder of this file."""
    import datasets

    folder = Path(__file__).parent / "data"
    rows = {
        name: [
            json.loads(line)
            for line in (folder / f"{file}.jsonl").read_text(encoding="utf-8").split("\n")
            if line
        ]
        for name, file in (("test", split), ("train", "train"))
    }
    return datasets.DatasetDict({name: datasets.Dataset.from_list(items) for name, items in rows.items()})


def process_results(doc: dict, results: list) -> dict[str, float]:
    """Metrics of one answer."""
    return grade(results[0], doc["value"], doc["unit"])
