"""Numbers and units as the questions print them."""

import re
from decimal import Decimal

DIGITS = 3


def number(value: float, digits: int = DIGITS) -> str:
    """Three significant digits: 0.0125, 3.40, 1700, 1.70e6."""
    scientific = f"{value:.{digits - 1}e}"
    mantissa, exponent = scientific.split("e")
    if -3 <= int(exponent) < 4:
        return format(Decimal(scientific), "f")
    return f"{mantissa}e{int(exponent)}"


def unit(name: str) -> str:
    """'km s-1' -> 'km s^-1'."""
    return re.sub(r"(?<=[A-Za-z])(-?\d+)", r"^\1", name)


def quantity(value: float, name: str, digits: int = DIGITS) -> str:
    """Number and unit."""
    return f"{number(value, digits)} {unit(name)}".strip()
