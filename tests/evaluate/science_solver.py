"""A second solver of `sciqa-dcf`: Gaussian formulas, plain floats in cgs, no astropy and nothing of the package."""

import math

H, K, C, G = 6.62607015e-27, 1.380649e-16, 2.99792458e10, 6.6743e-8
M_P = 1.67262192595e-24
M_H = M_P + 9.1093837139e-28
PC, AU = 3.0856775814913673e18, 1.495978707e13
SUN = 1.3271244e26 / G
FWHM = 2.3548200450309493
CGS = {
    "": 1.0, "cm-3": 1.0, "m-3": 1e-6, "dm-3": 1e-3, "km s-1": 1e5, "m s-1": 1e2, "cm s-1": 1.0, "deg": math.pi / 180, "rad": 1.0,
    "arcmin": math.pi / 180 / 60, "G": 1.0, "mG": 1e-3, "uG": 1e-6, "nT": 1e-5, "uT": 1e-2, "K": 1.0, "pc": PC, "kpc": 1e3 * PC, "au": AU,
    "cm": 1.0, "m": 1e2, "lyr": 9.4607304725808e17, "Msun": SUN, "kg": 1e3, "g": 1.0, "cm-2": 1.0, "m-2": 1e-4, "K km s-1": 1e5,
    "K m s-1": 1e2, "arcsec2": (math.pi / 180 / 3600) ** 2, "arcmin2": (math.pi / 180 / 60) ** 2, "sr": 1.0, "erg": 1.0, "J": 1e7,
    "erg cm-3": 1.0, "J m-3": 10.0, "eV cm-3": 1.602176634e-12, "yr": 3.15576e7, "Myr": 3.15576e13, "s": 1.0, "Jy": 1e-23, "mJy": 1e-26,
    "W m-2 Hz-1": 1e3, "GHz": 1e9, "THz": 1e12, "Hz": 1.0, "cm2 g-1": 1.0, "m2 kg-1": 10.0, "Lsun": 3.828e33, "erg s-1": 1.0, "W": 1e7,
}  # fmt: skip


def solve(record, degrees=False):
    """The answer to an item, in its unit. `degrees`: a solver that puts angles into the formulas in degrees."""
    given = {}
    for item in record["inputs"]:
        value = item["value"] * CGS[item["unit"]] / (FWHM if item["kind"] == "fwhm" else 1)
        given[item["name"]] = math.degrees(value) if degrees and item["name"] == "phi" else value
    split = record["split"] if record["split"] in ("inverse", "chain") else "forward"
    value = SOLVERS[record["family"], split](**given)
    if degrees and record["family"] == "dcf_tangent" and split == "inverse":
        return value  # radians, given as if they were degrees
    return value / CGS[record["unit"]]


def rho(n):
    return 2.8 * M_H * n


def ball(R):
    return 4.18879020478639 * R**3


def field(density, sv, phi):
    return 0.5 * math.sqrt(4 * math.pi * density) * sv / phi


def pressure(B):
    return B * B / 25.132741228718345


def sound(T):
    return math.sqrt(K * T / (2.33 * M_P))


def planck(nu, T):
    return 2 * H * nu**3 / C**2 / (math.exp(H * nu / (K * T)) - 1)


def rotor(T):
    total, j = 0.0, 0
    while True:
        term = (2 * j + 1) * math.exp(-H * 24.49556e9 * j * (j + 1) / (K * T))
        total += term
        if term < 1e-14 * total:
            return total
        j += 1


def cs(W, T):
    nu, a, g, e = 244.93556e9, 2.98e-4, 11.0, 35.27
    return 8 * math.pi * K * nu * nu / (H * C**3 * a) * rotor(T) / g * math.exp(e / T) * W


def critical(B):
    """Surface density at which a sheet with this field is critical."""
    return B / (2 * math.pi * math.sqrt(G))


def gas(S, D, kappa, nu, T):
    return 100 * S * D * D / kappa / planck(nu, T)


def total(**x):
    return sum(0.5 * x[f"m{i}"] * (x[f"v{i}"] - x["sys"]) ** 2 for i in (1, 2, 3))


def first_mass(**x):
    others = sum(0.5 * x[f"m{i}"] * (x[f"v{i}"] - x["sys"]) ** 2 for i in (2, 3))
    return (x["E"] - others) / (0.5 * (x["v1"] - x["sys"]) ** 2)


def alfven(B, n):
    return B / math.sqrt(4 * math.pi * rho(n))


def tangent(n, sv, phi):
    return math.sqrt(4 * math.pi * rho(n)) * sv / math.tan(phi)


def large_scale(n, sv, b):
    return math.sqrt((2 - b * b) * 4 * math.pi * rho(n)) * sv / b


def intercept(n, sv, B):
    # B^2 b^2 = (2 - b^2) x with x = 4 pi rho sv^2
    x = 4 * math.pi * rho(n) * sv * sv
    return math.sqrt(2 * x / (B * B + x))


SOLVERS = {
    ("dcf", "forward"): lambda n, sv, phi: field(rho(n), sv, phi),
    ("dcf", "inverse"): lambda B, sv, phi: (2 * B * phi / sv) ** 2 / (4 * math.pi) / (2.8 * M_H),
    ("dcf", "chain"): lambda M, R, sv, phi: field(M / ball(R), sv, phi),
    ("dcf_tangent", "forward"): tangent,
    ("dcf_tangent", "inverse"): lambda n, sv, B: math.atan2(math.sqrt(4 * math.pi * rho(n)) * sv, B),
    ("dcf_tangent", "chain"): lambda n, sv, phi: pressure(tangent(n, sv, phi)),
    ("skalidis_tassis", "forward"): lambda n, sv, phi: math.sqrt(2 * math.pi * rho(n) / phi) * sv,
    ("skalidis_tassis", "inverse"): lambda B, sv, phi: phi * (B / sv) ** 2 / (2 * math.pi * 2.8 * M_H),
    ("skalidis_tassis", "chain"): lambda n, sv, phi: sv / math.sqrt(2 * phi),
    ("structure_function", "forward"): large_scale,
    ("structure_function", "inverse"): intercept,
    ("structure_function", "chain"): lambda n, sv, b: alfven(large_scale(n, sv, b), n),
    ("total_field", "forward"): math.hypot,
    ("total_field", "inverse"): lambda pos, B: math.sqrt((B - pos) * (B + pos)),
    ("total_field", "chain"): lambda pos, los: pressure(pos) + pressure(los),
    ("alfven_speed", "forward"): alfven,
    ("alfven_speed", "inverse"): lambda va, n: va * math.sqrt(4 * math.pi * rho(n)),
    ("alfven_speed", "chain"): lambda B, n, R: R / alfven(B, n),
    ("alfven_mach", "forward"): lambda sv, B, n: math.sqrt(3) * sv / alfven(B, n),
    ("alfven_mach", "inverse"): lambda sv, mach, n: math.sqrt(3) * sv / mach * math.sqrt(4 * math.pi * rho(n)),
    ("alfven_mach", "chain"): lambda n, sv, phi: math.sqrt(3) * phi / 0.5,
    ("sonic_mach", "forward"): lambda T, sv: math.sqrt(3) * sv / sound(T),
    ("sonic_mach", "inverse"): lambda sv, mach: 2.33 * M_P / K * 3 * (sv / mach) ** 2,
    ("sonic_mach", "chain"): lambda T, sv: math.sqrt(3 * (sv * sv - K * T / (44 * M_P))) / sound(T),
    ("energy_density", "forward"): pressure,
    ("energy_density", "inverse"): lambda u: math.sqrt(8 * math.pi * u),
    ("energy_density", "chain"): lambda B, n, sv: 12 * math.pi * rho(n) * (sv / B) ** 2,
    ("equal_energy_radius", "forward"): lambda E, B: (6 * E / (B * B)) ** (1 / 3),
    ("equal_energy_radius", "inverse"): lambda E, R: math.sqrt(6 * E / R**3),
    ("equal_energy_radius", "chain"): lambda n, sv, phi, E: (6 * E / field(rho(n), sv, phi) ** 2) ** (1 / 3),
    ("energy_balance", "forward"): lambda B, M, R: pressure(B) * ball(R) / (0.6 * G * M * M / R),
    ("energy_balance", "inverse"): lambda ratio, M, R: math.sqrt(3.6 * ratio * G) * M / R**2,
    ("energy_balance", "chain"): lambda M, R, sv, T: 2.5 * R / (G * M) * (sv * sv + K * T / (2.33 * M_H)),
    ("mass_to_flux", "forward"): lambda N, B: 2.8 * M_H * N / critical(B),
    ("mass_to_flux", "inverse"): lambda ratio, B: ratio * critical(B) / (2.8 * M_H),
    ("mass_to_flux", "chain"): lambda M, R, B: M / (math.pi * R * R) / critical(B),
    ("dust_mass", "forward"): gas,
    ("dust_mass", "inverse"): lambda M, D, kappa, nu, T: M * kappa * planck(nu, T) / (100 * D * D),
    ("dust_mass", "chain"): lambda R, **x: gas(**x) / (math.pi * R * R * 2.8 * M_H),
    ("cs_column", "forward"): cs,
    ("cs_column", "inverse"): lambda N, T: N / cs(1.0, T),
    ("cs_column", "chain"): lambda peak, width, T: cs(math.sqrt(2 * math.pi) / FWHM * peak * width, T),
    ("outflow_mass", "forward"): lambda N, X, area, D: 2.8 * M_H * N / X * area * D * D,
    ("outflow_mass", "inverse"): lambda M, X, area, D: M * X / (2.8 * M_H * area * D * D),
    ("outflow_mass", "chain"): lambda W, T, X, area, D: 2.8 * M_H * cs(W, T) / X * area * D * D,
    ("outflow_energy", "forward"): total,
    ("outflow_energy", "inverse"): first_mass,
    ("outflow_energy", "chain"): lambda M, v, R: 0.5 * M * v**3 / R,
}  # fmt: skip
SOLVERS["total_field", "forward"] = lambda pos, los: math.hypot(pos, los)
