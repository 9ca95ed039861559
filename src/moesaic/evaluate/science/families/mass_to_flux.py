"""Mass-to-flux ratio in units of the critical one."""

import math

import numpy as np
from astropy import constants as const

from moesaic.evaluate.science.physics import M_H, MU, Quantity, mass_to_flux
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, change, times, unit
from moesaic.evaluate.science.variables import COLUMN, FIELD, MASS, RADIUS

CONTEXT = (
    "A magnetised molecular cloud is a sheet whose critical ratio of mass to magnetic flux is 1 / (2 pi sqrt(G)) in Gaussian units. "
    "Take a mean mass of 2.8 m_H per H2 molecule and no correction for projection."
)
FORMULA = "lambda = 2 pi sqrt(G) 2.8 m_H N(H2) / B"
LAMBDA = Variable("ratio", "mass-to-flux ratio in units of the critical one", "lambda", "")


def forward(N: Quantity, B: Quantity) -> Steps:
    return [
        ("Sigma = 2.8 m_H N(H2)", (MU * M_H * N).to(unit("g cm-2"))),
        ("lambda = 2 pi sqrt(G) Sigma / B", mass_to_flux(N, B)),
    ]


def inverse(ratio: Quantity, B: Quantity) -> Steps:
    # B / sqrt(4 pi) of Gaussian units is B / sqrt(mu_0) in SI.
    surface = (ratio * B / (2 * math.pi * np.sqrt(const.G * const.mu0 / (4 * math.pi)))).to(unit("g cm-2"))
    return [
        ("Sigma = lambda B / (2 pi sqrt(G))", surface),
        ("N(H2) = Sigma / (2.8 m_H)", (surface / (MU * M_H)).to(unit("cm-2"))),
    ]


def chain(M: Quantity, R: Quantity, B: Quantity) -> Steps:
    column = (M / (math.pi * R**2) / (MU * M_H)).to(unit("cm-2"))
    return [("N(H2) = M / (pi R^2) / (2.8 m_H)", column), (FORMULA, mass_to_flux(column, B))]


FAMILY = Family(
    name="mass_to_flux",
    source="Nakano & Nakamura 1978; Crutcher et al. 2004",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (COLUMN, FIELD),
        LAMBDA,
        forward,
        {
            "mean molecular weight left out": times(1 / MU),
            "pi for 2 pi": times(0.5),
            "2 pi left out": times(1 / (2 * math.pi)),
            "upside down": lambda solve, given: 1 / solve(**given)[-1][1],
            "milligauss for microgauss": times(1e3),
            "G for its root": times(math.sqrt(const.G.cgs.value)),
        },
    ),
    inverse=Inverse(
        "N",
        inverse,
        {
            "mean molecular weight left out": times(MU),
            "pi for 2 pi": times(2.0),
            "2 pi left out": times(2 * math.pi),
        },
    ),
    chain=Problem(
        CONTEXT + " Seen from the observer it is a disc of uniform column density.",
        (MASS, RADIUS, FIELD),
        LAMBDA,
        chain,
        {
            "diameter for radius": change("R", lambda R: 2 * R),
            "pi for 2 pi": times(0.5),
            "pi left out in the area": times(math.pi),
            "area of a sphere": times(0.25),
            "2 pi left out": times(1 / (2 * math.pi)),
        },
    ),
)
