"""Mass of an outflow from the column density of CS, its abundance, solid angle and distance."""

import math

from astropy import units as u

from moesaic.evaluate.science.physics import CS_CONSTANTS, M_H, MU, Quantity, cs_column, outflow_mass
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, instead, times, unit
from moesaic.evaluate.science.variables import (
    ABUNDANCE,
    CS_COLUMN,
    CS_LINE,
    DISTANCE,
    EXCITATION,
    SOLID_ANGLE,
)

CONTEXT = "A molecular outflow is seen in CS, whose column density is uniform over its solid angle. Take a mean mass of 2.8 m_H per H2 molecule."
FORMULA = "M = 2.8 m_H (N(CS) / X) Omega D^2, Omega in sr"
MASS = Variable("M", "mass of the outflow", "M", "Msun", others=("kg", "g"))
ARCSEC = math.pi / 180 / 3600
WRONG = {
    "mean molecular weight left out": times(1 / MU),
    "abundance left out": lambda solve, given: solve(**given)[-1][1] * given["X"].to_value(unit("")),
    "degrees for radians": times((180 / math.pi) ** 2),
    "arcseconds not squared in the conversion": times(1 / ARCSEC),
    "4 pi D^2 for D^2": times(4 * math.pi),
}


def forward(N: Quantity, X: Quantity, area: Quantity, D: Quantity) -> Steps:
    return [
        ("N(H2) = N(CS) / X", (N / X).to(unit("cm-2"))),
        ("A = Omega D^2", (area.to_value(u.sr) * D**2).to(unit("cm2"))),
        ("M = 2.8 m_H N(H2) A", outflow_mass(N, X, area, D)),
    ]


def inverse(M: Quantity, X: Quantity, area: Quantity, D: Quantity) -> Steps:
    surface = (area.to_value(u.sr) * D**2).to(unit("cm2"))
    molecules = (M / (MU * M_H) / surface).to(unit("cm-2"))
    return [
        ("A = Omega D^2", surface),
        ("N(H2) = M / (2.8 m_H A)", molecules),
        ("N(CS) = X N(H2)", (X * molecules).to(unit("cm-2"))),
    ]


def chain(W: Quantity, T: Quantity, X: Quantity, area: Quantity, D: Quantity) -> Steps:
    column = cs_column(W, T)
    return [
        ("N(CS) = 8 pi k nu^2 Q(T) exp(E_u/(k T)) / (h c^3 A g_u) W", column),
        *forward(column, X, area, D),
    ]


FAMILY = Family(
    name="outflow_mass",
    source="standard; see Dunham et al. 2014 for its uncertainties",
    formula=FORMULA,
    forward=Problem(CONTEXT, (CS_COLUMN, ABUNDANCE, SOLID_ANGLE, DISTANCE), MASS, forward, WRONG),
    inverse=Inverse(
        "N",
        inverse,
        {
            "mean molecular weight left out": times(MU),
            "divided by the abundance": instead(lambda M, X, area, D: inverse(M, X, area, D)[-1][1] / X**2),
            "degrees for radians": times((math.pi / 180) ** 2),
            "4 pi D^2 for D^2": times(1 / (4 * math.pi)),
        },
    ),
    chain=Problem(
        f"{CONTEXT} The line is CS(5-4), optically thin and in local thermodynamic equilibrium, background neglected, with {CS_CONSTANTS}; the "
        "partition function is the sum over a rigid rotor's levels.",
        (CS_LINE, EXCITATION, ABUNDANCE, SOLID_ANGLE, DISTANCE),
        MASS,
        chain,
        WRONG,
    ),
)
