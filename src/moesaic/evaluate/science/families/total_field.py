"""Total field from its plane-of-sky and line-of-sight parts."""

import numpy as np

from moesaic.evaluate.science.physics import Quantity, energy_density
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, instead, times, unit
from moesaic.evaluate.science.variables import FIELD

CONTEXT = "The plane-of-sky part of a magnetic field is known from dust polarisation, the line-of-sight part from the Zeeman effect of the same gas."
FORMULA = "B = sqrt(B_pos^2 + B_los^2)"
POS = Variable("pos", "plane-of-sky field strength", "B_pos", "mG", 0.3, 6.0, others=("uG", "nT", "uT"))
LOS = Variable("los", "line-of-sight field strength", "B_los", "mG", 0.3, 6.0, others=("uG", "nT", "uT"))
TOTAL = Variable("B", "total magnetic field strength", "B", "mG", others=FIELD.others)
DENSITY_OF_ENERGY = Variable("u", "total magnetic energy density", "u_B", "erg cm-3", others=("J m-3",))


def forward(pos: Quantity, los: Quantity) -> Steps:
    return [(FORMULA, np.sqrt(pos**2 + los**2).to(unit("mG")))]


def inverse(pos: Quantity, B: Quantity) -> Steps:
    return [("B_los = sqrt(B^2 - B_pos^2)", np.sqrt(B**2 - pos**2).to(unit("mG")))]


def chain(pos: Quantity, los: Quantity) -> Steps:
    total = forward(pos, los)
    return [*total, ("u_B = B^2 / (8 pi)", energy_density(total[-1][1]))]


FAMILY = Family(
    name="total_field",
    source="vector sum; energy density: any text on magnetised plasmas",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (POS, LOS),
        TOTAL,
        forward,
        {
            "fields added": instead(lambda pos, los: pos + los),
            "fields subtracted": instead(lambda pos, los: abs(pos - los)),
            "mean of the fields": instead(lambda pos, los: (pos + los) / 2),
            "geometric mean": instead(lambda pos, los: np.sqrt(pos * los)),
        },
    ),
    inverse=Inverse(
        "los",
        inverse,
        {
            "fields subtracted": instead(lambda pos, B: B - pos),
            "squares added": instead(lambda pos, B: np.sqrt(pos**2 + B**2)),
            "fields added": instead(lambda pos, B: pos + B),
        },
    ),
    chain=Problem(
        CONTEXT,
        (POS, LOS),
        DENSITY_OF_ENERGY,
        chain,
        {
            "fields added": instead(lambda pos, los: energy_density(pos + los)),
            "4 pi for 8 pi": times(2.0),
            "plane of the sky alone": instead(lambda pos, los: energy_density(pos)),
            "8 pi left out": times(8 * np.pi),
        },
    ),
)
