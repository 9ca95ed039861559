"""Hildebrand et al.: the turbulent part of the field from the structure function of the angles."""

import math

import numpy as np
from astropy import units as u

from moesaic.evaluate.science.physics import FWHM, MU, Quantity, alfven, density, field_of
from moesaic.evaluate.science.problem import (
    WIDTH,
    Family,
    Inverse,
    Problem,
    Steps,
    Variable,
    change,
    instead,
    times,
    unit,
)
from moesaic.evaluate.science.variables import ALFVEN_SPEED, DENSITY_NOTE, NUMBER_DENSITY, SIGMA_V, SKY_FIELD

CONTEXT = (
    "The structure function of the polarisation angles of a molecular cloud, extrapolated to zero distance, has the square root b (in rad). "
    "The method of Hildebrand et al. (2009) gives the ratio of turbulent to large-scale field as b / sqrt(2 - b^2), and the large-scale field "
    f"from it, the density and the velocity dispersion, with no further correction factor. {DENSITY_NOTE}"
)
FORMULA = "B_0 = sqrt((2 - b^2) 4 pi rho) sigma_v / b"
INTERCEPT = Variable(
    "b",
    "intercept of the structure function's root at zero distance",
    "b",
    "rad",
    0.1,
    0.5,
    (0.6, 1.2),
    ("deg", "arcmin"),
)


def ratio(b: Quantity) -> float:
    """Large-scale over turbulent field."""
    return math.sqrt(2 - b.to_value(u.rad) ** 2) / b.to_value(u.rad)


def forward(n: Quantity, sv: Quantity, b: Quantity) -> Steps:
    return [("rho = 2.8 m_H n(H2)", density(n)), (FORMULA, field_of(sv, density(n)) * ratio(b))]


def inverse(n: Quantity, sv: Quantity, B: Quantity) -> Steps:
    turbulent = field_of(sv, density(n))
    x = (B / turbulent).to_value(unit(""))
    return [
        ("rho = 2.8 m_H n(H2)", density(n)),
        ("B_t = sqrt(4 pi rho) sigma_v", turbulent),
        ("b = sqrt(2 / (1 + (B_0 / B_t)^2))", math.sqrt(2 / (1 + x**2)) * u.rad),
    ]


def chain(n: Quantity, sv: Quantity, b: Quantity) -> Steps:
    steps = forward(n, sv, b)
    return [*steps, ("v_A = B_0 / sqrt(4 pi rho)", alfven(steps[-1][1], density(n)))]


def degrees(b: Quantity) -> Quantity:
    return b.to_value(u.deg) * u.rad


FAMILY = Family(
    name="structure_function",
    source="Hildebrand et al. 2009, equations 7 to 9",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (NUMBER_DENSITY, SIGMA_V, INTERCEPT),
        SKY_FIELD,
        forward,
        WIDTH
        | {
            "4 pi left out": times(1 / math.sqrt(4 * math.pi)),
            "Q = 0.5 put in": times(0.5),
            "mean molecular weight left out": times(1 / math.sqrt(MU)),
            "b taken for the ratio of fields": instead(
                lambda n, sv, b: field_of(sv, density(n)) / b.to_value(u.rad)
            ),
            "b in degrees, as the ratio of fields": instead(
                lambda n, sv, b: field_of(sv, density(n)) / b.to_value(u.deg)
            ),
        },
    ),
    inverse=Inverse(
        "b",
        inverse,
        WIDTH
        | {
            "4 pi left out": change("B", lambda B: B * math.sqrt(4 * math.pi)),
            "mean molecular weight left out": change("n", lambda n: n / MU),
            "Q = 0.5 put in": change("B", lambda B: 2 * B),
            "degrees given as radians": times(180 / math.pi),
        },
    ),
    chain=Problem(
        CONTEXT,
        (NUMBER_DENSITY, SIGMA_V, INTERCEPT),
        ALFVEN_SPEED,
        chain,
        {
            "FWHM for sigma": times(FWHM),
            "4 pi left out": times(math.sqrt(4 * math.pi)),
            "Q = 0.5 put in": times(0.5),
            "b taken for the ratio of fields": instead(lambda n, sv, b: sv / b.to_value(u.rad)),
            "b left out": instead(lambda n, sv, b: sv * np.sqrt(2 - b.to_value(u.rad) ** 2)),
        },
    ),
)
