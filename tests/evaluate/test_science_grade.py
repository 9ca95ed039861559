"""The grader of `sciqa-dcf`: notations, units against astropy's table, which of several numbers counts."""

# ruff: noqa: RUF001

import math
import subprocess
import sys

import pytest
from astropy import units as u
from hypothesis import given
from hypothesis import strategies as st

from moesaic.evaluate.science import generate, grade
from moesaic.evaluate.science.families import FAMILIES

NOTATIONS = [
    "1.91 mG",
    "1.91mG",
    "1910 uG",
    "1910 µG",
    "1910 μG",
    "1,910 uG",
    "1.91e-3 G",
    "1.91E-3 gauss",
    "0.00191 Gauss",
    "1.91 x 10^-3 G",
    "1.91 × 10⁻³ G",
    "1.91·10^{-3} G",
    "1.91*10**-3 G",
    "1.91*10^(-3) G",
    "$1.91 \\times 10^{-3}\\,\\mathrm{G}$",
    "\\(1.91 \\times 10^{-3}\\ \\text{G}\\)",
    "1910 \\mu G",
    "$1910\\,\\mu\\mathrm{G}$",
    "191 nT",
    "1.91e-7 T",
    "1.91 × 10^−7 tesla",
    "0.191 microtesla",
    "1.91 ± 0.20 mG",
    "$1.91 \\pm 0.20$ mG",
    "about 1.91 milligauss",
    "1.91 mGauss",
    "1.91 milliGauss",
    "1.91 milli-Gauss",
    "191 nTesla",
    "1 910 µG",
    "1\\,910\\,\\mu\\mathrm{G}",
    "B = 2 191 nT / 1.147e1 = 191 nT",
    "B = 0.5 sqrt(4 pi 1.3e-17) 1.0e5 / 0.262 = 1.91 mG",
    "B ≈ 1.91 mG",
    "\\boxed{1.91\\ \\mathrm{mG}}",
    "First 3.3 mG without Q. The answer is 1.91 mG, or 191 nT.",
    "rho = 8.0e-18 g cm^-3\nB = 1.91 mG\n#### 1.91 mG",
    "The mass is 12 Msun. The field is 1.91 mG.",
]


@pytest.mark.parametrize(
    "text",
    [
        "3.2e22 cm^-2",
        "3.2e22 molecules cm^-2",
        "3.2e22 molecules per cm^2",
        "3.2 x 10^22 H2 molecules/cm^2",
        "$3.2\\times10^{22}\\ \\mathrm{H_2}$ molecules cm$^{-2}$",
        "3.2e26 particles m^-2",
        "the column is 3.2e22 hydrogen atoms per square cm",
    ],
)
def test_what_is_counted_has_no_dimension(text):
    assert grade.grade(text, 3.2e22, "cm^-2")["acc"] == 1.0


@pytest.mark.parametrize("text", NOTATIONS)
def test_a_field_in_many_notations(text):
    assert grade.parse(text, "mG") == pytest.approx(1.91, rel=1e-9)
    assert grade.grade(text, 1.91, "mG") == {"acc": 1.0, "acc_10": 1.0, "parsed": 1.0}


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("10^14 cm^-2", "cm-2", 1e14),
        ("3.2×10¹⁴ cm⁻²", "cm-2", 3.2e14),
        ("3.2e18 m^{-2}", "cm-2", 3.2e14),
        ("3.2e14 per square centimeter", "cm-2", 3.2e14),
        ("1.7e6 per cubic centimetre", "cm-3", 1.7e6),
        ("1.7e6/cm^3", "cm-3", 1.7e6),
        ("1.7e6 cm**-3", "cm-3", 1.7e6),
        ("1,700,000 cm-3", "cm-3", 1.7e6),
        ("2.5 km/s", "km s-1", 2.5),
        ("2.5 km s⁻¹", "m s-1", 2500),
        ("2.5 kilometers per second", "km s-1", 2.5),
        ("$2.5\\ \\mathrm{km\\,s^{-1}}$", "km s-1", 2.5),
        ("1.4e-7 erg/cm^3", "erg cm-3", 1.4e-7),
        ("1.4e-8 J/m³", "erg cm-3", 1.4e-7),
        ("1.4e-8 Pa", "erg cm-3", 1.4e-7),
        ("4.5 M_\\odot", "Msun", 4.5),
        ("4.5 $M_{\\odot}$", "Msun", 4.5),
        ("4.5 M☉", "Msun", 4.5),
        ("$4.5$ M$_\\odot$", "Msun", 4.5),
        ("4.5 M$_{\\odot}$", "Msun", 4.5),
        ("R = 12\\,000\\,\\mathrm{au}", "au", 12000),
        ("12 000 au", "au", 12000),
        ("12\u202f000.5 au", "au", 12000.5),
        ("1 200 000 cm^-3", "cm-3", 1.2e6),
        ("10^3 500 cm^-3", "cm-3", 500),
        ("10^-3 500 cm^-3", "cm-3", 500),
        ("2.5 100 cm^-3", "cm-3", 100),
        ("2 100e3 cm^-3", "cm-3", 1e5),
        ("2 100 x 10^3 cm^-3", "cm-3", 2.1e6),
        ("cm^-3 2 100 000 cm^-3", "cm-3", 2.1e6),
        ("0 100 cm^-3", "cm-3", 100),
        ("4.5 solar masses", "Msun", 4.5),
        ("12,022 au", "pc", 12022 * 1.495978707e13 / 3.0856775814913674e18),
        ("12022 astronomical units", "au", 12022),
        ("15°", "rad", math.radians(15)),
        ("15^\\circ", "deg", 15),
        ("0.262 rad", "deg", math.degrees(0.262)),
        ("3.5e38 J", "erg", 3.5e45),
        ("100 K km/s", "K km s-1", 100),
        ("5 W/(m^2 Hz)", "Jy", 5e26),
        ("2.0 L_sun", "Lsun", 2.0),
        ("M_A = sqrt(3) 0.26 / 0.5 = 0.907, so the gas is sub-Alfvenic", "", 0.907),
        ("0.907", "", 0.907),
        ("90.7 %", "", 0.907),
        ("The ratio is 3.4 x 10^2.", "", 340),
    ],
)
def test_units_and_notations(text, unit, value):
    assert grade.parse(text, unit) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("1.91", "mG"),
        ("1.91 km/s", "mG"),
        ("", "mG"),
        ("I do not know.", "mG"),
        ("1.91 cm^-2", "cm-3"),
        ("15 deg", ""),
        ("3 cm^-3", ""),
    ],
)
def test_no_number_of_the_right_dimension(text, unit):
    assert grade.parse(text, unit) is None
    assert grade.grade(text, 1.91, unit) == {"acc": 0.0, "acc_10": 0.0, "parsed": 0.0}


def test_tolerances():
    assert [grade.grade(f"{v} mG", 1.0, "mG")["acc"] for v in (0.979, 0.981, 1.019, 1.021, -1.0, 0)] == [
        0,
        1,
        1,
        0,
        0,
        0,
    ]
    assert [grade.grade(f"{v} mG", 1.0, "mG")["acc_10"] for v in (0.89, 0.91, 1.09, 1.11)] == [0, 1, 1, 0]


def test_the_table_is_astropys():
    """Every unit that a question can ask for or state, and the rest of the table by its names in astropy."""
    used = {
        form.unit
        for family in FAMILIES.values()
        for problem in (family.forward, family.chain)
        for form in _forms(problem)
    }
    assert len(used) > 30
    names = {
        "yr",
        "hr",
        "min",
        "day",
        "lyr",
        "Rsun",
        "Lsun",
        "arcsec",
        "eV",
        "keV",
        "GeV",
        "Jy",
        "uJy",
        "Pa",
        "kN",
        "kT",
        "MHz",
        "kpc",
        "%",
        "dyn",
    }
    for name in used | names:
        factor, powers = grade.unit_of(name)
        bases = (u.cm, u.g, u.s, u.K, u.rad, u.G)
        composed = factor * math.prod(
            (base**power for base, power in zip(bases, powers, strict=True)), start=u.dimensionless_unscaled
        )
        with u.add_enabled_equivalencies(u.dimensionless_angles()):
            assert (1 * u.Unit(name) / composed).to_value("") == pytest.approx(1, rel=1e-9), name


def _forms(problem):
    for variable in (*problem.variables, problem.answer):
        yield variable.form
        yield from variable.restated


@given(st.floats(1e-30, 1e60), st.sampled_from(["mG", "cm-3", "erg cm-3", "km s-1", "Msun", ""]))
def test_what_is_written_is_read(value, unit):
    spelled = generate.text.unit(unit)
    mantissa, exponent = f"{value:.6e}".split("e")
    for text in (
        f"{value:.6e} {spelled}",
        f"{mantissa} x 10^{int(exponent)} {spelled}",
        f"${mantissa} \\times 10^{{{int(exponent)}}}$ {spelled}",
    ):
        assert grade.parse(text, unit) == pytest.approx(value, rel=1e-5)


PIECES = [
    "1",
    "9e9",
    "10^",
    "^",
    "**",
    "(",
    ")",
    "{",
    "}",
    "x10^",
    "×10⁻",
    "-",
    "=",
    "G",
    " cm^",
    "Msun",
    "\\boxed{",
    "\\frac{",
    "/",
    "per ",
    "±",
    "answer is",
    ",",
    ".",
    "٣",
    "e",
]


@given(
    st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)),
    st.sampled_from(["mG", "cm-3", ""]),
)
def test_no_answer_makes_the_grader_fail(text, unit):
    """An evaluation of hours may not end on one strange answer."""
    assert set(grade.grade(text, 1.0, unit).values()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "1e99999 mG",
        "1 x 10^-99999 mG",
        "10^999999 mG",
        "1 Msun^9 Msun^9 mG",
        "1 pc^99 mG",
        "1e" + "9" * 5000 + " mG",
        "9" * 5000 + " mG",
    ],
)
def test_numbers_beyond_a_float(text):
    assert grade.grade(text, 1.0, "mG")["acc"] == 0.0


def test_unknown_units_are_refused():
    with pytest.raises(ValueError, match="furlong"):
        grade.unit_of("furlong")


def test_the_grader_is_plain_python():
    """It is copied beside the tasks, so it may import nothing but the standard library (the loader asks the harness's datasets)."""
    code = (
        "import sys, runpy; before = set(sys.modules); runpy.run_path(sys.argv[1]); "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, grade.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
