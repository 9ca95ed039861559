"""Skalidis & Tassis: DCF's counterpart for compressible modes, with the root of the angle dispersion."""

import math

import numpy as np
from astropy import constants as const
from astropy import units as u

from moesaic.evaluate.science.physics import MU, Q, Quantity, alfven, dcf, density, number_density
from moesaic.evaluate.science.problem import (
    DEGREES,
    WIDTH,
    Family,
    Inverse,
    Problem,
    Steps,
    instead,
    times,
    unit,
)
from moesaic.evaluate.science.variables import (
    ALFVEN_SPEED,
    DENSITY_NOTE,
    NUMBER_DENSITY,
    SIGMA_PHI,
    SIGMA_V,
    SKY_FIELD,
)

CONTEXT = (
    "Polarised dust emission of a molecular core is analysed with the method of Skalidis & Tassis (2021), which allows for compressible "
    f"turbulence. {DENSITY_NOTE}"
)
FORMULA = "B = sqrt(2 pi rho) sigma_v / sqrt(sigma_phi), sigma_phi in rad"


def field(n: Quantity, sv: Quantity, phi: Quantity) -> Quantity:
    # 2 pi rho is half of 4 pi rho, which is mu_0 rho in SI.
    return (np.sqrt(const.mu0 * density(n) / 2) * sv / math.sqrt(phi.to_value(u.rad))).to(unit("mG"))


def forward(n: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    return [("rho = 2.8 m_H n(H2)", density(n)), (FORMULA, field(n, sv, phi))]


def inverse(B: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    rho = (B**2 * phi.to_value(u.rad) / sv**2 * 2 / const.mu0).to(unit("g cm-3"))
    return [
        ("rho = B^2 sigma_phi / (2 pi sigma_v^2), sigma_phi in rad", rho),
        ("n(H2) = rho / (2.8 m_H)", number_density(rho)),
    ]


def chain(n: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    return [*forward(n, sv, phi), ("v_A = B / sqrt(4 pi rho)", alfven(field(n, sv, phi), density(n)))]


FAMILY = Family(
    name="skalidis_tassis",
    source="Skalidis & Tassis 2021",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (NUMBER_DENSITY, SIGMA_V, SIGMA_PHI),
        SKY_FIELD,
        forward,
        DEGREES
        | WIDTH
        | {
            "4 pi for 2 pi": times(math.sqrt(2)),
            "2 pi left out": times(1 / math.sqrt(2 * math.pi)),
            "no root of the angle": instead(lambda n, sv, phi: dcf(density(n), sv, phi) / Q / math.sqrt(2)),
            "mean molecular weight left out": times(1 / math.sqrt(MU)),
        },
    ),
    inverse=Inverse(
        "n",
        inverse,
        DEGREES
        | WIDTH
        | {
            "4 pi for 2 pi": times(0.5),
            "2 pi left out": times(2 * math.pi),
            "mean molecular weight left out": times(MU),
        },
    ),
    chain=Problem(
        CONTEXT,
        (NUMBER_DENSITY, SIGMA_V, SIGMA_PHI),
        ALFVEN_SPEED,
        chain,
        DEGREES
        | WIDTH
        | {
            "4 pi left out": times(math.sqrt(4 * math.pi)),
            "8 pi for 4 pi": times(1 / math.sqrt(2)),
            "no root of the angle": instead(lambda n, sv, phi: sv / math.sqrt(2) / phi.to_value(u.rad)),
        },
    ),
)
