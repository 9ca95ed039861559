"""Constants and formulas of the suite, in SI with astropy's units, so that a slip between gauss and tesla cannot pass unseen.

The questions and their solution steps use Gaussian formulas, as the field does: B^2 / (4 pi) there is B^2 / mu_0 here. The test suite solves
every item a second time in plain cgs floats.
"""

import math
from typing import Any

import numpy as np
from astropy import constants as const
from astropy import units as u

Quantity = Any
"""astropy.units.Quantity; astropy ships no types that mypy could use."""

Q = 0.5
"""DCF's correction for incompressible turbulence seen along a line of sight (Ostriker, Stone & Gammie 2001)."""
MU = 2.8
"""Mean mass per H2 molecule in hydrogen masses, helium and metals included (Kauffmann et al. 2008)."""
MU_P = 2.33
"""Mean mass per free particle of molecular gas, in hydrogen (or proton) masses."""
GAS_TO_DUST = 100.0
# Parsed once: reading a unit's name costs more than a conversion.
KM_S, CM3, G_CM3, ERG_CM3 = u.km / u.s, u.cm**-3, u.g / u.cm**3, u.erg / u.cm**3
FWHM = math.sqrt(8 * math.log(2))
"""Full width at half maximum of a Gaussian over its standard deviation."""
GAUSSIAN_AREA = math.sqrt(2 * math.pi) / FWHM
"""Area of a Gaussian over peak times FWHM: 1.0645."""
M_H = const.m_p + const.m_e
"""Of the atom; the binding energy is 1.4e-8 of it."""

CS_NU = 244.93556 * u.GHz
CS_A = 2.98e-4 / u.s
CS_G = 11
CS_B0 = 24.49556 * u.GHz
CS_E = 35.27 * u.K
CS_CONSTANTS = "nu = 244.93556 GHz, A = 2.98e-4 s^-1, g_u = 11, E_u/k = 35.27 K, B_0 = 24.49556 GHz"


def density(n: Quantity) -> Quantity:
    """Mass density of gas with n H2 molecules per volume."""
    return (MU * M_H * n).to(G_CM3)


def number_density(rho: Quantity) -> Quantity:
    """The inverse of `density`."""
    return (rho / (MU * M_H)).to(CM3)


def sphere(radius: Quantity) -> Quantity:
    """Volume."""
    return 4 / 3 * math.pi * radius**3


DCF = "B = Q sqrt(4 pi rho) sigma_v / sigma_phi, sigma_phi in rad"
"""`dcf` as a solution step says it."""


def dcf(rho: Quantity, sigma_v: Quantity, sigma_phi: Quantity) -> Quantity:
    """Q sqrt(4 pi rho) sigma_v / sigma_phi: Davis (1951), Chandrasekhar & Fermi (1953). Good for sigma_phi below 25 deg."""
    return (Q * np.sqrt(const.mu0 * rho) * sigma_v / sigma_phi.to_value(u.rad)).to(u.mG)


def alfven(field: Quantity, rho: Quantity) -> Quantity:
    """B / sqrt(4 pi rho)."""
    return (field / np.sqrt(const.mu0 * rho)).to(KM_S)


def field_of(speed: Quantity, rho: Quantity) -> Quantity:
    """The field whose Alfven speed this is: sqrt(4 pi rho) v."""
    return (np.sqrt(const.mu0 * rho) * speed).to(u.mG)


def energy_density(field: Quantity) -> Quantity:
    """B^2 / (8 pi)."""
    return (field**2 / (2 * const.mu0)).to(ERG_CM3)


def sound(temperature: Quantity) -> Quantity:
    """Isothermal sound speed sqrt(k T / (2.33 m_p))."""
    return np.sqrt(const.k_B * temperature / (MU_P * const.m_p)).to(KM_S)


def gravity(mass: Quantity, radius: Quantity) -> Quantity:
    """|E_g| = 3/5 G M^2 / R of a uniform sphere."""
    return (0.6 * const.G * mass**2 / radius).to(u.erg)


def mass_to_flux(column: Quantity, field: Quantity) -> Quantity:
    """mu m_H N / B over the critical 1 / (2 pi sqrt(G)) of a sheet (Nakano & Nakamura 1978): 7.6e-21 N[cm^-2] / B[uG]."""
    surface = MU * M_H * column
    return (2 * math.pi * np.sqrt(const.G * const.mu0 / (4 * math.pi)) * surface / field).to(
        u.dimensionless_unscaled
    )


def planck(nu: Quantity, temperature: Quantity) -> Quantity:
    """Planck function per steradian."""
    x = (const.h * nu / (const.k_B * temperature)).to_value(u.dimensionless_unscaled)
    return (2 * const.h * nu**3 / const.c**2 / math.expm1(x)).to(u.Jy) / u.sr


def dust_mass(
    flux: Quantity, distance: Quantity, kappa: Quantity, nu: Quantity, temperature: Quantity
) -> Quantity:
    """Gas mass of optically thin isothermal dust: S D^2 R / (kappa B_nu(T)) (Hildebrand 1983)."""
    return (flux * distance**2 * GAS_TO_DUST / (kappa * planck(nu, temperature) * u.sr)).to(u.Msun)


def cs_partition(temperature: Quantity) -> float:
    """Sum over the levels of a rigid rotor, (2J + 1) exp(-h B_0 J (J + 1) / k T), to the last that counts."""
    x = (const.h * CS_B0 / (const.k_B * temperature)).to_value(u.dimensionless_unscaled)
    last = int(math.sqrt(50 / x)) + 2
    return math.fsum((2 * j + 1) * math.exp(-x * j * (j + 1)) for j in range(last))


def cs_column(line: Quantity, temperature: Quantity) -> Quantity:
    """Column density of CS from the integrated CS(5-4) line, thin, LTE (Mangum & Shirley 2015, equation 80 without background)."""
    upper = 8 * math.pi * const.k_B * CS_NU**2 * line / (const.h * const.c**3 * CS_A)
    boltzmann = math.exp((CS_E / temperature).to_value(u.dimensionless_unscaled))
    return (upper * cs_partition(temperature) / CS_G * boltzmann).to(u.cm**-2)


def outflow_mass(column: Quantity, abundance: Quantity, area: Quantity, distance: Quantity) -> Quantity:
    """mu m_H (N / X) Omega D^2."""
    return (MU * M_H * column / abundance * area.to_value(u.sr) * distance**2).to(u.Msun)
