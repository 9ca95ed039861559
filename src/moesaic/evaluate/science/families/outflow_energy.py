"""Kinetic energy of an outflow, by velocity channel."""

from moesaic.evaluate.science.physics import Quantity
from moesaic.evaluate.science.problem import Family, Inverse, Problem, Steps, Variable, instead, times, unit
from moesaic.evaluate.science.variables import MASS, RADIUS

CONTEXT = "The gas of a molecular outflow is added up by line-of-sight velocity channel; no correction is made for inclination."
FORMULA = "E = 1/2 sum M(v) (v - v_sys)^2"
SYSTEM = Variable("sys", "systemic velocity", "v_sys", "km s-1", 2.0, 8.0, (8.1, 12.0))
VELOCITIES = tuple(
    Variable(
        f"v{i}", f"velocity of channel {i}", f"v_{i}", "km s-1", low, high, (high + 1, high + 25), ("m s-1",)
    )
    for i, (low, high) in enumerate(((20.0, 30.0), (35.0, 45.0), (50.0, 65.0)), 1)
)
MASSES = tuple(
    Variable(f"m{i}", f"mass in channel {i}", f"M_{i}", "Msun", low, high, others=("kg", "g"))
    for i, (low, high) in enumerate(((0.2, 1.0), (0.05, 0.4), (0.02, 0.1)), 1)
)
ENERGY = Variable("E", "kinetic energy of the outflow", "E", "erg", others=("J",))
OUTFLOW = Variable("M", "mass of the outflow", "M", "Msun", 0.1, 5.0, others=MASS.others)
SPEED = Variable(
    "v", "speed of the outflow relative to the source", "v", "km s-1", 8.0, 60.0, others=("m s-1", "cm s-1")
)
LENGTH = Variable("R", "length of the outflow", "R", RADIUS.unit, 0.02, 0.2, others=RADIUS.others)
POWER = Variable("L", "mechanical luminosity of the outflow", "L", "Lsun", others=("erg s-1", "W"))


def channels(given: dict[str, Quantity]) -> list[tuple[Quantity, Quantity]]:
    return [(given[f"m{i}"], given[f"v{i}"] - given["sys"]) for i in (1, 2, 3)]


def forward(**given: Quantity) -> Steps:
    parts = [(0.5 * mass * speed**2).to(unit("erg")) for mass, speed in channels(given)]
    return [(f"E_{i} = 1/2 M_{i} (v_{i} - v_sys)^2", part) for i, part in enumerate(parts, 1)] + [
        ("E = E_1 + E_2 + E_3", sum(parts[1:], parts[0]))
    ]


def inverse(**given: Quantity) -> Steps:
    known = {name: given[name] for name in given if name != "E"}
    rest = given["E"]
    for i in (2, 3):
        rest = rest - (0.5 * known[f"m{i}"] * (known[f"v{i}"] - known["sys"]) ** 2).to(unit("erg"))
    return [
        ("E_1 = E - E_2 - E_3", rest.to(unit("erg"))),
        ("M_1 = 2 E_1 / (v_1 - v_sys)^2", (2 * rest / (known["v1"] - known["sys"]) ** 2).to(unit("Msun"))),
    ]


def chain(M: Quantity, v: Quantity, R: Quantity) -> Steps:
    energy, age = (0.5 * M * v**2).to(unit("erg")), (R / v).to(unit("yr"))
    return [("E = 1/2 M v^2", energy), ("t = R / v", age), ("L = E / t", (energy / age).to(unit("Lsun")))]


def absolute(**given: Quantity) -> Quantity:
    """Velocities as they are."""
    return forward(**given | {"sys": 0 * unit("km s-1")})[-1][1]


def of_the_mean(**given: Quantity) -> Quantity:
    """All mass at the plain mean of the velocities."""
    parts = channels(given)
    speed = sum((speed for _, speed in parts[1:]), parts[0][1]) / len(parts)
    return (0.5 * sum((mass for mass, _ in parts[1:]), parts[0][0]) * speed**2).to(unit("erg"))


FAMILY = Family(
    name="outflow_energy",
    source="standard; see Dunham et al. 2014 for its uncertainties",
    formula=FORMULA,
    forward=Problem(
        CONTEXT,
        (SYSTEM, *(v for pair in zip(MASSES, VELOCITIES, strict=True) for v in pair)),
        ENERGY,
        forward,
        {
            "systemic velocity not taken off": instead(absolute),
            "1/2 left out": times(2.0),
            "mean velocity for all gas": instead(of_the_mean),
            "kilometres taken for metres": times(1e-6),
            "joule given as erg": times(1e-7),
        },
    ),
    inverse=Inverse(
        "m1",
        inverse,
        {
            "1/2 left out": instead(lambda **given: inverse(**given | {"E": given["E"] / 2})[-1][1]),
            "systemic velocity not taken off": instead(
                lambda **given: inverse(**given | {"sys": 0 * unit("km s-1")})[-1][1]
            ),
            "other channels left out": instead(
                lambda **given: (2 * given["E"] / (given["v1"] - given["sys"]) ** 2).to(unit("Msun"))
            ),
            "factor 2 left out": times(0.5),
        },
    ),
    chain=Problem(
        "The gas of a molecular outflow moves with one speed; its age is its length over that speed. No correction is made for inclination.",
        (OUTFLOW, SPEED, LENGTH),
        POWER,
        chain,
        {
            "1/2 left out": times(2.0),
            "diameter for radius": times(0.5),
            "erg/s and W mixed up": times(1e7),
            "years and seconds mixed up": times(3.156e7),
        },
    ),
)
