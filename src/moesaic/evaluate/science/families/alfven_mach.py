"""Alfven Mach number. With DCF's own field it is sqrt(3) sigma_phi / Q, free of density and velocity."""

import math

from moesaic.evaluate.science.physics import DCF, MU, Q, Quantity, alfven, dcf, density, field_of
from moesaic.evaluate.science.problem import (
    DEGREES,
    WIDTH,
    Family,
    Inverse,
    Problem,
    Steps,
    Variable,
    times,
    unit,
)
from moesaic.evaluate.science.variables import DENSITY_NOTE, FIELD, NUMBER_DENSITY, SIGMA_PHI, SIGMA_V

CONTEXT = (
    "Turbulence in a magnetised molecular core is isotropic, so that its three-dimensional velocity dispersion is sqrt(3) times the "
    f"one-dimensional one. {DENSITY_NOTE}"
)
FORMULA = "M_A = sqrt(3) sigma_v / v_A, v_A = B / sqrt(4 pi rho)"
MACH = Variable("mach", "Alfven Mach number of the three-dimensional turbulence", "M_A", "")


def forward(sv: Quantity, B: Quantity, n: Quantity) -> Steps:
    speed = alfven(B, density(n))
    return [
        ("rho = 2.8 m_H n(H2)", density(n)),
        ("v_A = B / sqrt(4 pi rho)", speed),
        ("M_A = sqrt(3) sigma_v / v_A", (math.sqrt(3) * sv / speed).to(unit(""))),
    ]


def inverse(sv: Quantity, mach: Quantity, n: Quantity) -> Steps:
    speed = (math.sqrt(3) * sv / mach).to(unit("km s-1"))
    return [
        ("v_A = sqrt(3) sigma_v / M_A", speed),
        ("rho = 2.8 m_H n(H2)", density(n)),
        ("B = v_A sqrt(4 pi rho)", field_of(speed, density(n))),
    ]


def chain(n: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    field = dcf(density(n), sv, phi)
    return [
        (DCF, field),
        *forward(sv, field, n)[1:],
    ]


FAMILY = Family(
    name="alfven_mach",
    source="definition; sqrt(3) for isotropic turbulence",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (SIGMA_V, FIELD, NUMBER_DENSITY),
        MACH,
        forward,
        WIDTH
        | {
            "one dimension for three": times(1 / math.sqrt(3)),
            "factor 3 for its root": times(math.sqrt(3)),
            "4 pi left out": times(1 / math.sqrt(4 * math.pi)),
            "mean molecular weight left out": times(1 / math.sqrt(MU)),
            "upside down": lambda solve, given: 1 / solve(**given)[-1][1],
        },
    ),
    inverse=Inverse(
        "B",
        inverse,
        WIDTH
        | {
            "one dimension for three": times(1 / math.sqrt(3)),
            "4 pi left out": times(1 / math.sqrt(4 * math.pi)),
            "mean molecular weight left out": times(1 / math.sqrt(MU)),
            "8 pi for 4 pi": times(math.sqrt(2)),
        },
    ),
    chain=Problem(
        CONTEXT
        + " The field follows from the Davis-Chandrasekhar-Fermi method with the correction factor Q = 0.5.",
        (NUMBER_DENSITY, SIGMA_V, SIGMA_PHI),
        MACH,
        chain,
        DEGREES
        | {
            "one dimension for three": times(1 / math.sqrt(3)),
            "Q left out": times(Q),
            "4 pi left out in v_A": times(1 / math.sqrt(4 * math.pi)),
            "FWHM for sigma in one of the two": times(2.3548),
        },
    ),
)
