"""Alfven speed."""

import math

from astropy import constants as const

from moesaic.evaluate.science.physics import MU, Quantity, alfven, density, field_of
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, instead, times, unit
from moesaic.evaluate.science.variables import ALFVEN_SPEED, DENSITY_NOTE, FIELD, NUMBER_DENSITY, RADIUS

CONTEXT = f"Alfven waves run through magnetised molecular gas. {DENSITY_NOTE}"
FORMULA = "v_A = B / sqrt(4 pi rho)"
TIME = Variable("t", "time in which an Alfven wave crosses the radius", "t", "yr", others=("s", "Myr"))


def forward(B: Quantity, n: Quantity) -> Steps:
    return [("rho = 2.8 m_H n(H2)", density(n)), (FORMULA, alfven(B, density(n)))]


def inverse(va: Quantity, n: Quantity) -> Steps:
    return [("rho = 2.8 m_H n(H2)", density(n)), ("B = v_A sqrt(4 pi rho)", field_of(va, density(n)))]


def chain(B: Quantity, n: Quantity, R: Quantity) -> Steps:
    return [*forward(B, n), ("t = R / v_A", (R / alfven(B, density(n))).to(unit("yr")))]


def si_formula(B: Quantity, n: Quantity) -> Quantity:
    """Gauss and g/cm^3 put into B / sqrt(mu_0 rho)."""
    return B.to_value(unit("G")) / math.sqrt(const.mu0.value * density(n).value) * unit("cm s-1")


ROOTS = {
    "4 pi left out": times(math.sqrt(4 * math.pi)),
    "8 pi for 4 pi": times(1 / math.sqrt(2)),
    "mean molecular weight left out": times(math.sqrt(MU)),
}
FAMILY = Family(
    name="alfven_speed",
    source="Alfven 1942",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (FIELD, NUMBER_DENSITY),
        ALFVEN_SPEED,
        forward,
        ROOTS | {"SI formula with cgs numbers": instead(si_formula)},
    ),
    inverse=Inverse(
        "B",
        inverse,
        {
            "4 pi left out": times(1 / math.sqrt(4 * math.pi)),
            "8 pi for 4 pi": times(math.sqrt(2)),
            "mean molecular weight left out": times(1 / math.sqrt(MU)),
        },
    ),
    chain=Problem(
        CONTEXT,
        (FIELD, NUMBER_DENSITY, RADIUS),
        TIME,
        chain,
        {
            "4 pi left out": times(1 / math.sqrt(4 * math.pi)),
            "diameter for radius": times(2.0),
            "mean molecular weight left out": times(1 / math.sqrt(MU)),
        },
    ),
)
