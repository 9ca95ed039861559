"""Gas mass from the flux density of thin dust."""

import math

from astropy import units as u

from moesaic.evaluate.science.physics import GAS_TO_DUST, M_H, MU, Quantity, dust_mass, planck
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, change, times, unit
from moesaic.evaluate.science.variables import COLUMN, DISTANCE, RADIUS

CONTEXT = (
    "Thermal dust emission of a core is optically thin and isothermal. The opacity kappa is per gram of dust, and the mass ratio of gas to dust "
    "is 100; use the full Planck function."
)
FORMULA = "M = 100 S D^2 / (kappa B_nu(T))"
FLUX = Variable("S", "flux density", "S", "Jy", 0.05, 5.0, others=("mJy", "W m-2 Hz-1"))
FREQUENCY = Variable("nu", "frequency", "nu", "GHz", 200.0, 400.0, (450.0, 900.0), ("Hz", "THz"))
OPACITY = Variable("kappa", "dust opacity", "kappa", "cm2 g-1", 0.5, 2.0, (2.5, 10.0), ("m2 kg-1",))
DUST = Variable("T", "dust temperature", "T_d", "K", 15.0, 150.0, (160.0, 600.0))
GAS = Variable("M", "total mass of the core", "M", "Msun", others=("kg", "g"))
MEAN_COLUMN = Variable(
    "N", "mean column density of molecular hydrogen", "N(H2)", "cm-2", others=COLUMN.others
)


def forward(S: Quantity, D: Quantity, kappa: Quantity, nu: Quantity, T: Quantity) -> Steps:
    return [
        ("B_nu(T) = 2 h nu^3 / c^2 / (exp(h nu / k T) - 1)", planck(nu, T)),
        (FORMULA, dust_mass(S, D, kappa, nu, T)),
    ]


def inverse(M: Quantity, D: Quantity, kappa: Quantity, nu: Quantity, T: Quantity) -> Steps:
    intensity = planck(nu, T)
    return [
        ("B_nu(T) = 2 h nu^3 / c^2 / (exp(h nu / k T) - 1)", intensity),
        (
            "S = M kappa B_nu(T) / (100 D^2)",
            (M * kappa * intensity * u.sr / (GAS_TO_DUST * D**2)).to(unit("Jy")),
        ),
    ]


def chain(S: Quantity, D: Quantity, kappa: Quantity, nu: Quantity, T: Quantity, R: Quantity) -> Steps:
    mass = dust_mass(S, D, kappa, nu, T)
    return [
        *forward(S, D, kappa, nu, T),
        ("N(H2) = M / (pi R^2) / (2.8 m_H)", (mass / (math.pi * R**2) / (MU * M_H)).to(unit("cm-2"))),
    ]


VARIABLES = (FLUX, DISTANCE, OPACITY, FREQUENCY, DUST)
FAMILY = Family(
    name="dust_mass",
    source="Hildebrand 1983",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        VARIABLES,
        GAS,
        forward,
        {
            "ratio of gas to dust left out": times(1 / GAS_TO_DUST),
            "4 pi D^2 for D^2": times(4 * math.pi),
            "distance not squared": change("D", lambda D: math.sqrt(D.to_value(unit("kpc"))) * u.kpc),
            "factor 2 of the Planck function left out": times(2.0),
            "pi B_nu for B_nu": times(1 / math.pi),
        },
    ),
    inverse=Inverse(
        "S",
        inverse,
        {
            "ratio of gas to dust left out": times(GAS_TO_DUST),
            "4 pi D^2 for D^2": times(1 / (4 * math.pi)),
            "factor 2 of the Planck function left out": times(0.5),
            "pi B_nu for B_nu": times(math.pi),
        },
    ),
    chain=Problem(
        CONTEXT + " Seen from the observer the core is a disc. Take a mean mass of 2.8 m_H per H2 molecule.",
        (*VARIABLES, RADIUS),
        MEAN_COLUMN,
        chain,
        {
            "ratio of gas to dust left out": times(1 / GAS_TO_DUST),
            "mean molecular weight left out": times(MU),
            "diameter for radius": times(0.25),
            "pi left out in the area": times(math.pi),
            "2.8 m_H applied twice": times(1 / MU),
        },
    ),
)
