"""DCF for larger angles: the tangent of the dispersion, which gives the total (mean and turbulent) field."""

import math

import numpy as np
from astropy import constants as const
from astropy import units as u

from moesaic.evaluate.science.physics import MU, Quantity, density, energy_density, field_of
from moesaic.evaluate.science.problem import (
    DEGREES,
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
from moesaic.evaluate.science.variables import DENSITY_NOTE, NUMBER_DENSITY, SIGMA_PHI, SIGMA_V, SKY_FIELD

CONTEXT = (
    "Polarised dust emission of a molecular core is analysed with the form of the Davis-Chandrasekhar-Fermi method by Falceta-Goncalves, "
    f"Lazarian & Kowal (2008), which uses the tangent of the angle dispersion and no further correction factor. {DENSITY_NOTE}"
)
FORMULA = "B = sqrt(4 pi rho) sigma_v / tan(sigma_phi)"
LARGE = Variable("phi", SIGMA_PHI.text, "sigma_phi", "deg", 20.0, 45.0, (3.0, 15.0), ("rad", "arcmin"))
DENSITY_OF_ENERGY = Variable("u", "magnetic energy density", "u_B", "erg cm-3", others=("J m-3",))
ROOTS = {
    "4 pi left out": times(1 / math.sqrt(4 * math.pi)),
    "Q = 0.5 put in": times(0.5),
    "mean molecular weight left out": times(1 / math.sqrt(MU)),
}


def field(n: Quantity, sv: Quantity, phi: Quantity) -> Quantity:
    return field_of(sv, density(n)) / math.tan(phi.to_value(u.rad))


def forward(n: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    return [("rho = 2.8 m_H n(H2)", density(n)), (FORMULA, field(n, sv, phi))]


def inverse(n: Quantity, sv: Quantity, B: Quantity) -> Steps:
    rho = density(n)
    tangent = (field_of(sv, rho) / B).to(unit(""))
    return [
        ("rho = 2.8 m_H n(H2)", rho),
        ("tan(sigma_phi) = sqrt(4 pi rho) sigma_v / B", tangent),
        ("sigma_phi = arctan(...)", np.arctan(tangent).to(unit("deg"))),
    ]


def chain(n: Quantity, sv: Quantity, phi: Quantity) -> Steps:
    return [*forward(n, sv, phi), ("u_B = B^2 / (8 pi)", energy_density(field(n, sv, phi)))]


FAMILY = Family(
    name="dcf_tangent",
    source="Falceta-Goncalves, Lazarian & Kowal 2008",
    formula=FORMULA,
    forward=Problem(CONTEXT, (NUMBER_DENSITY, SIGMA_V, LARGE), SKY_FIELD, forward, DEGREES | WIDTH | ROOTS),
    inverse=Inverse(
        "phi",
        inverse,
        WIDTH
        | {
            "radians given as degrees": times(math.pi / 180),
            "4 pi left out": change("B", lambda B: B * math.sqrt(4 * math.pi)),
            "Q = 0.5 put in": change("B", lambda B: 2 * B),
            "mean molecular weight left out": change("n", lambda n: n / MU),
        },
    ),
    chain=Problem(
        CONTEXT,
        (NUMBER_DENSITY, SIGMA_V, LARGE),
        DENSITY_OF_ENERGY,
        chain,
        DEGREES
        | WIDTH
        | {
            "4 pi for 8 pi": times(2.0),
            "Q = 0.5 put in": times(0.25),
            "B for B^2": instead(
                lambda n, sv, phi: field(n, sv, phi).to_value(unit("G")) / (8 * math.pi) * unit("erg cm-3")
            ),
            "SI formula with gauss": instead(
                lambda n, sv, phi: (
                    field(n, sv, phi).to_value(unit("G")) ** 2 / (2 * const.mu0.value) * unit("erg cm-3")
                )
            ),
        },
    ),
)
