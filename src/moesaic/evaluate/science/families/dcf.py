"""Davis-Chandrasekhar-Fermi: field strength from the spread of polarisation angles and of velocities."""

import math

from astropy import constants as const

from moesaic.evaluate.science.physics import DCF, MU, Q, Quantity, dcf, density, number_density, sphere
from moesaic.evaluate.science.problem import DEGREES, WIDTH, Family, Inverse, Problem, Steps, times, unit
from moesaic.evaluate.science.variables import (
    DENSITY_NOTE,
    MASS,
    NUMBER_DENSITY,
    RADIUS,
    SIGMA_PHI,
    SIGMA_V,
    SKY_FIELD,
)

CONTEXT = (
    "Polarised dust emission of a molecular core is analysed with the Davis-Chandrasekhar-Fermi (DCF) method, with the correction factor "
    f"Q = 0.5. {DENSITY_NOTE}"
)
FORMULA = DCF


def forward(n: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    rho = density(n)
    return [("rho = 2.8 m_H n(H2)", rho), (FORMULA, dcf(rho, sv, phi))]


def inverse(B: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    rho = ((B * phi.to_value(unit("rad")) / (Q * sv)) ** 2 / const.mu0).to(unit("g cm-3"))
    return [
        ("rho = (B sigma_phi / (Q sigma_v))^2 / (4 pi), sigma_phi in rad", rho),
        ("n(H2) = rho / (2.8 m_H)", number_density(rho)),
    ]


def chain(M: Quantity, R: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    rho = (M / sphere(R)).to(unit("g cm-3"))
    return [("rho = M / (4/3 pi R^3)", rho), (FORMULA, dcf(rho, sv, phi))]


FAMILY = Family(
    name="dcf",
    source="Davis 1951; Chandrasekhar & Fermi 1953; Q: Ostriker, Stone & Gammie 2001",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (NUMBER_DENSITY, SIGMA_V, SIGMA_PHI),
        SKY_FIELD,
        forward,
        DEGREES
        | WIDTH
        | {
            "4 pi left out": times(1 / math.sqrt(4 * math.pi)),
            "8 pi for 4 pi": times(math.sqrt(2)),
            "Q left out": times(1 / Q),
            "mean molecular weight left out": times(1 / math.sqrt(MU)),
        },
    ),
    inverse=Inverse(
        "n",
        inverse,
        DEGREES
        | WIDTH
        | {
            "4 pi left out": times(4 * math.pi),
            "Q left out": times(Q**2),
            "mean molecular weight left out": times(MU),
        },
    ),
    chain=Problem(
        "A molecular core is a uniform sphere. Its polarised dust emission is analysed with the Davis-Chandrasekhar-Fermi (DCF) method, "
        "with the correction factor Q = 0.5.",
        (MASS, RADIUS, SIGMA_V, SIGMA_PHI),
        SKY_FIELD,
        chain,
        DEGREES
        | WIDTH
        | {
            "4 pi left out": times(1 / math.sqrt(4 * math.pi)),
            "diameter for radius": times(math.sqrt(8)),
            "Q left out": times(1 / Q),
            "cube for sphere": times(math.sqrt(4 / 3 * math.pi)),
        },
    ),
)
