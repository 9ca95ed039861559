"""Energy density of a field, and its share beside that of turbulence."""

import math

from astropy import constants as const

from moesaic.evaluate.science.physics import FWHM, MU, Quantity, density, energy_density
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, instead, times, unit
from moesaic.evaluate.science.variables import DENSITY_NOTE, FIELD, NUMBER_DENSITY, SIGMA_V

FORMULA = "u_B = B^2 / (8 pi)"
ENERGY_DENSITY = Variable("u", "magnetic energy density", "u_B", "erg cm-3", others=("J m-3", "eV cm-3"))
RATIO = Variable("ratio", "ratio of turbulent kinetic to magnetic energy density", "u_k/u_B", "")


def forward(B: Quantity) -> Steps:
    return [(FORMULA, energy_density(B))]


def inverse(u: Quantity) -> Steps:
    # B^2 / (8 pi) is B^2 / (2 mu_0) in SI.
    return [("B = sqrt(8 pi u_B)", ((2 * const.mu0 * u) ** 0.5).to(unit("mG")))]


def chain(B: Quantity, n: Quantity, sv: Quantity) -> Steps:
    kinetic = (1.5 * density(n) * sv**2).to(unit("erg cm-3"))
    return [
        (FORMULA, energy_density(B)),
        ("u_k = 3/2 rho sigma_v^2, rho = 2.8 m_H n(H2)", kinetic),
        ("u_k / u_B", (kinetic / energy_density(B)).to(unit(""))),
    ]


FAMILY = Family(
    name="energy_density",
    source="any text on magnetised plasmas",
    formula=FORMULA,
    forward=Problem(
        "A magnetic field fills a volume of interstellar gas.",
        (FIELD,),
        ENERGY_DENSITY,
        forward,
        {
            "4 pi for 8 pi": times(2.0),
            "8 pi left out": times(8 * math.pi),
            "SI formula with gauss": instead(
                lambda B: B.to_value(unit("G")) ** 2 / (2 * const.mu0.value) * unit("erg cm-3")
            ),
            "B for B^2": instead(lambda B: B.to_value(unit("G")) / (8 * math.pi) * unit("erg cm-3")),
            "milligauss taken for gauss": times(1e6),
        },
    ),
    inverse=Inverse(
        "B",
        inverse,
        {
            "4 pi for 8 pi": times(1 / math.sqrt(2)),
            "8 pi left out": times(1 / math.sqrt(8 * math.pi)),
            "root of 8 pi left out": times(math.sqrt(8 * math.pi)),
            "2 for the root of 2": times(math.sqrt(2)),
        },
    ),
    chain=Problem(
        f"Turbulence in a magnetised molecular core is isotropic (three dimensions). {DENSITY_NOTE}",
        (FIELD, NUMBER_DENSITY, SIGMA_V),
        RATIO,
        chain,
        {
            "FWHM for sigma": times(FWHM**2),
            "one dimension for three": times(1 / 3),
            "4 pi for 8 pi": times(0.5),
            "mean molecular weight left out": times(1 / MU),
            "8 pi left out": times(1 / (8 * math.pi)),
            "upside down": lambda solve, given: 1 / solve(**given)[-1][1],
        },
    ),
)
