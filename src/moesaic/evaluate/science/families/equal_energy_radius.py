"""Radius of the sphere whose magnetic energy equals an outflow's."""

import math

from astropy import constants as const

from moesaic.evaluate.science.physics import DCF, Q, Quantity, dcf, density, energy_density, sphere
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
from moesaic.evaluate.science.variables import DENSITY_NOTE, ENERGY, FIELD, NUMBER_DENSITY, SIGMA_PHI, SIGMA_V

CONTEXT = "The energy of a molecular outflow is compared with the energy of the magnetic field in a sphere of uniform field strength."
FORMULA = "R = (3 E / (4 pi u_B))^(1/3), u_B = B^2 / (8 pi)"
OUTFLOW = Variable("E", "energy of the outflow", "E", "erg", ENERGY.low, ENERGY.high, others=ENERGY.others)
RADIUS = Variable(
    "R",
    "radius of the sphere whose magnetic energy equals that of the outflow",
    "R",
    "pc",
    others=("au", "cm"),
)


def forward(E: Quantity, B: Quantity) -> Steps:
    volume = (E / energy_density(B)).to(unit("cm3"))
    return [
        ("u_B = B^2 / (8 pi)", energy_density(B)),
        ("V = E / u_B", volume),
        ("R = (3 V / (4 pi))^(1/3)", ((3 * volume / (4 * math.pi)) ** (1 / 3)).to(unit("pc"))),
    ]


def inverse(E: Quantity, R: Quantity) -> Steps:
    density_of_energy = (E / sphere(R)).to(unit("erg cm-3"))
    return [
        ("u_B = E / (4/3 pi R^3)", density_of_energy),
        ("B = sqrt(8 pi u_B)", ((2 * const.mu0 * density_of_energy) ** 0.5).to(unit("mG"))),
    ]


def chain(n: Quantity, sv: Quantity, phi: Quantity, E: Quantity) -> Steps:
    field = dcf(density(n), sv, phi)
    return [
        ("rho = 2.8 m_H n(H2)", density(n)),
        (DCF, field),
        *forward(E, field),
    ]


FAMILY = Family(
    name="equal_energy_radius",
    source="E_B = u_B V",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (OUTFLOW, FIELD),
        RADIUS,
        forward,
        {
            "4 pi for 8 pi": times(2 ** (-1 / 3)),
            "8 pi left out": times((8 * math.pi) ** (-1 / 3)),
            "diameter for radius": times(2.0),
            "cube for sphere": times((4 / 3 * math.pi) ** (1 / 3)),
        },
    ),
    inverse=Inverse(
        "B",
        inverse,
        {
            "4 pi for 8 pi": times(1 / math.sqrt(2)),
            "diameter for radius": times(math.sqrt(8)),
            "cube for sphere": times(math.sqrt(4 / 3 * math.pi)),
            "8 pi left out": times(1 / math.sqrt(8 * math.pi)),
        },
    ),
    chain=Problem(
        CONTEXT
        + f" The field follows from the Davis-Chandrasekhar-Fermi method with the correction factor Q = 0.5. {DENSITY_NOTE}",
        (NUMBER_DENSITY, SIGMA_V, SIGMA_PHI, OUTFLOW),
        RADIUS,
        chain,
        DEGREES
        | WIDTH
        | {
            "Q left out": times(Q ** (2 / 3)),
            "diameter for radius": times(2.0),
            "4 pi left out in B": times((4 * math.pi) ** (1 / 3)),
        },
    ),
)
