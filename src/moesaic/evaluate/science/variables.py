"""Quantities that several families use. Ranges are those of dense cores around young massive stars, such as NGC 6334 I."""

from moesaic.evaluate.science.problem import Variable

NUMBER_DENSITY = Variable(
    "n", "number density of molecular hydrogen", "n(H2)", "cm-3", 1e5, 1e7, others=("m-3", "dm-3")
)
SIGMA_V = Variable(
    "sv",
    "one-dimensional velocity dispersion of the gas",
    "sigma_v",
    "km s-1",
    0.3,
    3.0,
    others=("m s-1", "cm s-1"),
    full_width=("full width at half maximum of the line (Gaussian)", "dV"),
)
SIGMA_PHI = Variable(
    "phi",
    "dispersion of the polarisation angles",
    "sigma_phi",
    "deg",
    5.0,
    20.0,
    (0.5, 4.9),
    ("rad", "arcmin"),
)
FIELD = Variable("B", "magnetic field strength", "B", "mG", 0.1, 10.0, others=("uG", "nT", "G", "uT"))
SKY_FIELD = Variable(
    "B", "plane-of-sky magnetic field strength", "B_pos", "mG", 0.1, 10.0, others=("uG", "nT", "G", "uT")
)
TEMPERATURE = Variable("T", "temperature", "T", "K", 15.0, 100.0, (101.0, 400.0))
EXCITATION = Variable("T", "excitation temperature", "T_ex", "K", 15.0, 100.0, (101.0, 400.0))
RADIUS = Variable("R", "radius", "R", "pc", 0.01, 0.1, others=("au", "cm", "m"))
MASS = Variable("M", "mass", "M", "Msun", 5.0, 100.0, others=("kg", "g"))
DISTANCE = Variable("D", "distance", "D", "kpc", 0.5, 5.0, others=("pc", "lyr"))
COLUMN = Variable("N", "column density of molecular hydrogen", "N(H2)", "cm-2", 1e22, 1e24, others=("m-2",))
CS_COLUMN = Variable("N", "column density of CS", "N(CS)", "cm-2", 1e13, 1e15, others=("m-2",))
CS_LINE = Variable(
    "W", "velocity-integrated CS(5-4) line brightness", "W", "K km s-1", 3.0, 300.0, others=("K m s-1",)
)
ABUNDANCE = Variable("X", "abundance of CS relative to H2", "X", "", 1e-9, 1e-8)
SOLID_ANGLE = Variable("area", "solid angle", "Omega", "arcsec2", 2.0, 50.0, others=("sr", "arcmin2"))
ENERGY = Variable("E", "energy", "E", "erg", 1e44, 1e46, others=("J",))
SPEED = Variable("v", "speed relative to the source", "v", "km s-1", 8.0, 60.0, others=("m s-1", "cm s-1"))
ALFVEN_SPEED = Variable("va", "Alfven speed", "v_A", "km s-1", others=("m s-1", "cm s-1"))

DENSITY_NOTE = "Take a mean mass of 2.8 m_H per H2 molecule."
