"""Magnetic, kinetic and thermal energy of a core beside its gravitational energy."""

import math

from astropy import constants as const

from moesaic.evaluate.science.physics import FWHM, M_H, MU_P, Quantity, energy_density, gravity, sphere
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, times, unit
from moesaic.evaluate.science.variables import FIELD, MASS, RADIUS, SIGMA_V, TEMPERATURE

CONTEXT = (
    "A molecular core is a uniform sphere with a uniform magnetic field. Fields outside of it are left aside."
)
FORMULA = "E_B / |E_g| = B^2 R^3 / 6 / (3/5 G M^2 / R)"
RATIO = Variable("ratio", "ratio of magnetic to gravitational energy (both positive)", "E_B/|E_g|", "")
SUPPORT = Variable(
    "ratio",
    "ratio of turbulent plus thermal to gravitational energy (all positive)",
    "(E_k + E_th)/|E_g|",
    "",
)


def forward(B: Quantity, M: Quantity, R: Quantity) -> Steps:
    magnetic = (energy_density(B) * sphere(R)).to(unit("erg"))
    return [
        ("E_B = B^2 / (8 pi) 4/3 pi R^3", magnetic),
        ("|E_g| = 3/5 G M^2 / R", gravity(M, R)),
        ("E_B / |E_g|", (magnetic / gravity(M, R)).to(unit(""))),
    ]


def inverse(ratio: Quantity, M: Quantity, R: Quantity) -> Steps:
    density_of_energy = (ratio * gravity(M, R) / sphere(R)).to(unit("erg cm-3"))
    return [
        ("|E_g| = 3/5 G M^2 / R", gravity(M, R)),
        ("u_B = ratio |E_g| / (4/3 pi R^3)", density_of_energy),
        ("B = sqrt(8 pi u_B)", ((2 * const.mu0 * density_of_energy) ** 0.5).to(unit("mG"))),
    ]


def chain(M: Quantity, R: Quantity, sv: Quantity, T: Quantity) -> Steps:
    kinetic = (1.5 * M * sv**2).to(unit("erg"))
    thermal = (1.5 * M * const.k_B * T / (MU_P * M_H)).to(unit("erg"))
    return [
        ("E_k = 3/2 M sigma_v^2", kinetic),
        ("E_th = 3/2 M k T / (2.33 m_H)", thermal),
        ("|E_g| = 3/5 G M^2 / R", gravity(M, R)),
        ("(E_k + E_th) / |E_g|", ((kinetic + thermal) / gravity(M, R)).to(unit(""))),
    ]


FAMILY = Family(
    name="energy_balance",
    source="virial theorem of a uniform sphere",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (FIELD, MASS, RADIUS),
        RATIO,
        forward,
        {
            "4 pi for 8 pi": times(2.0),
            "3/5 left out": times(0.6),
            "diameter for radius": times(16.0),
            "upside down": lambda solve, given: 1 / solve(**given)[-1][1],
            "cube for sphere": times(3 / (4 * math.pi)),
        },
    ),
    inverse=Inverse(
        "B",
        inverse,
        {
            "4 pi for 8 pi": times(1 / math.sqrt(2)),
            "3/5 left out": times(1 / math.sqrt(0.6)),
            "diameter for radius": times(0.25),
            "cube for sphere": times(math.sqrt(4 / 3 * math.pi)),
        },
    ),
    chain=Problem(
        "A molecular core is a uniform sphere with isotropic turbulence. Its thermal energy is that of monatomic gas with a mean mass of "
        "2.33 m_H per particle.",
        (MASS, RADIUS, SIGMA_V, TEMPERATURE),
        SUPPORT,
        chain,
        {
            "one dimension for three": times(1 / 3),
            "3/5 left out": times(0.6),
            "FWHM for sigma": lambda solve, given: solve(**given | {"sv": FWHM * given["sv"]})[-1][1],
            "diameter for radius": times(2.0),
            "mass to the first power": lambda solve, given: (
                solve(**given)[-1][1] * given["M"].to_value(unit("Msun"))
            ),
        },
    ),
)
