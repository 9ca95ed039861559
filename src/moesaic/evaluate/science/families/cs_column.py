"""CS column density from the integrated CS(5-4) line."""

import math

from moesaic.evaluate.science.physics import (
    CS_CONSTANTS,
    CS_E,
    CS_G,
    GAUSSIAN_AREA,
    Quantity,
    cs_column,
    cs_partition,
)
from moesaic.evaluate.science.problem import Family, Inverse, Mistake, Problem, Steps, Variable, times, unit
from moesaic.evaluate.science.variables import CS_COLUMN, CS_LINE, EXCITATION

CONTEXT = (
    f"CS(5-4) emission is optically thin and in local thermodynamic equilibrium; the background is neglected. For this line {CS_CONSTANTS}; the "
    "partition function is the sum over a rigid rotor's levels."
)
FORMULA = "N = 8 pi k nu^2 Q(T) exp(E_u/(k T)) / (h c^3 A g_u) W"
PEAK = Variable("peak", "peak brightness temperature of the Gaussian line", "T_peak", "K", 1.0, 40.0)
WIDTH = Variable(
    "width", "full width at half maximum of the line", "dV", "km s-1", 1.0, 8.0, others=("m s-1",)
)


def forward(W: Quantity, T: Quantity) -> Steps:
    return [
        ("Q(T) = sum (2J + 1) exp(-h B_0 J (J + 1) / (k T))", partition(T)),
        (FORMULA, cs_column(W, T)),
    ]


def inverse(N: Quantity, T: Quantity) -> Steps:
    one = CS_LINE.form.true(1.0)
    return [
        ("Q(T) = sum (2J + 1) exp(-h B_0 J (J + 1) / (k T))", partition(T)),
        (
            "W = h c^3 A g_u N / (8 pi k nu^2 Q(T) exp(E_u/(k T)))",
            (one * N / cs_column(one, T)).to(unit("K km s-1")),
        ),
    ]


def chain(peak: Quantity, width: Quantity, T: Quantity) -> Steps:
    line = (GAUSSIAN_AREA * peak * width).to(unit("K km s-1"))
    return [("W = 1.0645 T_peak dV", line), *forward(line, T)]


def partition(T: Quantity) -> Quantity:
    return cs_partition(T) * (T / T)


def without_boltzmann(sign: int) -> Mistake:
    return lambda solve, given: (
        solve(**given)[-1][1] * math.exp(sign * (CS_E / given["T"]).to_value(unit("")))
    )


WRONG: dict[str, Mistake] = {
    "exp(E_u/kT) left out": without_boltzmann(-1),
    "exp(-E_u/kT) for exp(E_u/kT)": without_boltzmann(-2),
    "g_u left out": times(float(CS_G)),
    "partition function left out": lambda solve, given: solve(**given)[-1][1] / cs_partition(given["T"]),
    "cm for km": times(1e-5),
}
FAMILY = Family(
    name="cs_column",
    source="Mangum & Shirley 2015; constants: CDMS",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (CS_LINE, EXCITATION),
        CS_COLUMN,
        forward,
        WRONG | {"8 pi left out": times(1 / (8 * math.pi))},
    ),
    inverse=Inverse(
        "W",
        inverse,
        {
            "exp(E_u/kT) left out": without_boltzmann(1),
            "g_u left out": times(1 / CS_G),
            "partition function left out": lambda solve, given: (
                solve(**given)[-1][1] * cs_partition(given["T"])
            ),
            "8 pi left out": times(8 * math.pi),
        },
    ),
    chain=Problem(
        CONTEXT,
        (PEAK, WIDTH, EXCITATION),
        CS_COLUMN,
        chain,
        WRONG
        | {
            "FWHM for sigma": times(math.sqrt(2 * math.pi) / GAUSSIAN_AREA),
            "sigma for FWHM": times(1 / 2.3548),
        },
    ),
)
