"""Sonic Mach number of the non-thermal motions."""

import math

import numpy as np
from astropy import constants as const

from moesaic.evaluate.science.physics import FWHM, MU, MU_P, Quantity, sound
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, change, times, unit
from moesaic.evaluate.science.variables import SIGMA_V, TEMPERATURE

CONTEXT = (
    "Turbulence in molecular gas is isotropic, so that its three-dimensional velocity dispersion is sqrt(3) times the one-dimensional one. "
    "The sound speed is the isothermal one, for a mean mass of 2.33 proton masses per particle."
)
FORMULA = "M_s = sqrt(3) sigma_nt / c_s, c_s = sqrt(k T / (2.33 m_p))"
CS_MASS = 44
KINETIC = Variable("T", "kinetic temperature", "T", "K", 15.0, 100.0, (101.0, 400.0))
NON_THERMAL = Variable(
    "sv", "one-dimensional non-thermal velocity dispersion", "sigma_nt", "km s-1", 0.3, 3.0,
    others=("m s-1", "cm s-1"), full_width=("full width at half maximum of the non-thermal velocities (Gaussian)", "dV_nt"),
)  # fmt: skip
# Close to the thermal width of CS itself (0.1 km/s), so that it has to be taken off.
OBSERVED = Variable(
    "sv",
    "observed velocity dispersion of the CS line",
    "sigma_obs",
    "km s-1",
    0.2,
    0.6,
    (0.6, 3.0),
    full_width=SIGMA_V.full_width,
)
MACH = Variable("mach", "sonic Mach number of the three-dimensional non-thermal motions", "M_s", "")


def forward(T: Quantity, sv: Quantity) -> Steps:
    return [
        ("c_s = sqrt(k T / (2.33 m_p))", sound(T)),
        ("M_s = sqrt(3) sigma_nt / c_s", (math.sqrt(3) * sv / sound(T)).to(unit(""))),
    ]


def inverse(sv: Quantity, mach: Quantity) -> Steps:
    speed = (math.sqrt(3) * sv / mach).to(unit("km s-1"))
    return [
        ("c_s = sqrt(3) sigma_nt / M_s", speed),
        ("T = 2.33 m_p c_s^2 / k", (MU_P * const.m_p * speed**2 / const.k_B).to(unit("K"))),
    ]


def chain(T: Quantity, sv: Quantity) -> Steps:
    thermal = np.sqrt(const.k_B * T / (CS_MASS * const.m_p)).to(unit("km s-1"))
    turbulent = np.sqrt(sv**2 - thermal**2).to(unit("km s-1"))
    return [
        ("sigma_th(CS) = sqrt(k T / (44 m_p))", thermal),
        ("sigma_nt = sqrt(sigma_obs^2 - sigma_th^2)", turbulent),
        *forward(T, turbulent),
    ]


WRONG = {
    "FWHM for sigma": change("sv", lambda sv: FWHM * sv),
    "one dimension for three": times(1 / math.sqrt(3)),
    "factor 3 for its root": times(math.sqrt(3)),
    "2.33 left out": times(1 / math.sqrt(MU_P)),
    "adiabatic sound speed of gamma 5/3": times(1 / math.sqrt(5 / 3)),
}
FAMILY = Family(
    name="sonic_mach",
    source="definition; 2.33: H2 with helium",
    formula=FORMULA,
    forward=Problem(CONTEXT, (KINETIC, NON_THERMAL), MACH, forward, WRONG),
    inverse=Inverse(
        "T",
        inverse,
        {
            "FWHM for sigma": times(FWHM**2),
            "one dimension for three": times(1 / 3),
            "2.33 left out": times(1 / MU_P),
            "2.8, the mass per H2, for 2.33": times(MU / MU_P),
        },
    ),
    chain=Problem(
        CONTEXT + " A CS molecule has 44 proton masses; its thermal motion widens the observed line.",
        (TEMPERATURE, OBSERVED),
        MACH,
        chain,
        WRONG,
    ),
)
