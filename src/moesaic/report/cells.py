"""How a number looks in a table cell (HTML) and in a sentence."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

NOTHING = '<span class="none">&ndash;</span>'


def interval(score: Mapping[str, Any] | None, digits: int, scale: float = 1.0) -> str:
    """Value, and its interval in small print."""
    if score is None:
        return NOTHING
    text = _fixed(score["value"] * scale, digits)
    if score["ci_low"] is None:
        return text
    low, high = (_fixed(score[name] * scale, digits) for name in ("ci_low", "ci_high"))
    return f"{text}<small>{low}&ndash;{high}</small>"


def number(value: float | None, digits: int) -> str:
    """A number, or a dash."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def floors(
    scores: Sequence[Mapping[str, Any] | None], digits: int, scale: float = 1.0
) -> tuple[str, list[str]]:
    """What chance alone gives: once for all where it is the same, else a dash and the models' own, in small print behind their values."""
    known = {score["chance"] for score in scores if score is not None}
    if len(known) < 2:
        value = next(iter(known), None)
        return number(None if value is None else value * scale, digits), [""] * len(scores)
    own = [None if score is None or score["chance"] is None else score["chance"] * scale for score in scores]
    return NOTHING, [
        "" if value is None else f"<small>chance {_fixed(value, digits)}</small>" for value in own
    ]


def _fixed(value: float, digits: int) -> str:
    """Fewer digits behind the point the more are before it; the perplexity of a broken model needs an exponent."""
    if abs(value) >= 1e6:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.{min(digits, 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else digits)}f}"


def ratio(value: float | None) -> str:
    """A ratio to the dense parent."""
    return NOTHING if value is None else f"{value:.2f}"


def percent(value: float) -> str:
    """0.5 -> 50.0 %."""
    return f"{100 * value:.1f} %"


def signed(value: float) -> str:
    """0.05 -> +5.0 %."""
    return f"{100 * value:+.1f} %".replace("-", "\N{MINUS SIGN}")


def short(count: float) -> str:
    """134515008 -> 134.5 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f}"


def duration(seconds: float | None) -> str:
    """90 -> 1 min 30 s."""
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    )


def setting(value: Any) -> str:
    """A value of the configuration."""
    return NOTHING if value is None else f"<code>{escape(str(value))}</code>"


def code(text: str) -> str:
    """A digest or the like, or a dash."""
    return f"<code>{escape(text)}</code>" if text else NOTHING
