"""The items of `sciqa-dcf`: a second solver, known anchors, what wrong and lazy solvers score, and what must not change."""

import dataclasses
import hashlib
import json
import random
import re
import subprocess
import sys

import pytest
import science_solver
from astropy import units as u

from moesaic.evaluate.science import choices, export, generate, grade, physics, text
from moesaic.evaluate.science.families import FAMILIES
from moesaic.evaluate.science.problem import times

COUNT = 20
OPEN = ("id", "range", "unit", "inverse", "chain")


@pytest.fixture(scope="module")
def items():
    return {split: generate.items(split, COUNT, 0) for split in generate.SPLITS}


@pytest.fixture(scope="module")
def everything(items):
    return [item for found in items.values() for item in found]


def right(response, item):
    return grade.grade(response, item.value, item.unit)["acc"] == 1.0


def solve(family, split="forward", **given):
    """The family's own answer; inputs as 'value unit'."""
    problem = getattr(FAMILIES[family], split)
    return problem.solve(**{name: u.Quantity(value) for name, value in given.items()})


# ---------------------------------------------------------------- gold


def test_a_second_solver_agrees_on_every_item(everything):
    assert len(everything) == len(OPEN) * COUNT * len(FAMILIES)
    for item in everything:
        assert science_solver.solve(item.record()) == pytest.approx(item.value, rel=1e-6), item.id
        assert right(f"{science_solver.solve(item.record()):.4g} {item.unit}", item), item.id


def test_the_question_prints_what_the_solver_used(everything):
    for item in everything:
        for one in item.inputs:
            assert f"= {text.quantity(one.value, one.unit)}" in item.question, item.id
        asked = item.question.rsplit(". ", 1)[-1] if item.unit else ""
        assert item.question.endswith(
            f"Give a number in {text.unit(item.unit)}." if item.unit else "Give a number."
        ), asked
        assert item.question.count("(Gaussian)") >= sum(one.kind == "fwhm" for one in item.inputs)


def test_answer_steps_and_right_choice_say_the_same(everything):
    for item in everything:
        assert right(item.answer, item), item.id
        assert right(item.steps[-1], item), item.id
        assert right(item.choices[item.gold], item), item.id
        assert right(f"{item.steps}\nAnswer: {item.answer}", item), item.id
        assert not any(right(option, item) for i, option in enumerate(item.choices) if i != item.gold), (
            item.id
        )


ANCHORS = [
    *[
        ("energy_density", "forward", {"B": f"{B} mG"}, value)
        for B, value in ((1, 3.98e-8), (1.9, 1.436e-7), (4, 6.37e-7), (11, 4.81e-6))
    ],
    ("equal_energy_radius", "forward", {"E": "3.5e45 erg", "B": "1.9 mG"}, 0.0583),
    ("total_field", "inverse", {"B": "4 mG", "pos": "1.9 mG"}, 3.52),
    ("dcf", "forward", {"n": "1.7e6 cm-3", "sv": "1 km s-1", "phi": "15 deg"}, 1.91),
    ("alfven_speed", "forward", {"n": "1.7e6 cm-3", "B": "1.91 mG"}, 1.90),
    ("alfven_mach", "chain", {"n": "1.7e6 cm-3", "sv": "1 km s-1", "phi": "15 deg"}, 0.9069),
    ("mass_to_flux", "forward", {"N": "1e24 cm-2", "B": "1e-3 G"}, 7.606),
    (
        "dust_mass",
        "forward",
        {"S": "1 Jy", "nu": "250 GHz", "D": "1.3 kpc", "T": "100 K", "kappa": "1 cm2 g-1"},
        4.48,
    ),
    ("cs_column", "forward", {"W": "1 K km s-1", "T": "50 K"}, 3.09e12),
]


@pytest.mark.parametrize(("family", "split", "given", "value"), ANCHORS)
def test_anchors(family, split, given, value):
    steps = solve(family, split, **given)
    assert float(steps[-1][1].value) == pytest.approx(value, rel=0.01)
    inputs = [
        {"name": n, "value": u.Quantity(q).value, "unit": _name(q), "kind": ""} for n, q in given.items()
    ]
    problem = FAMILIES[family].inverse if split == "inverse" else getattr(FAMILIES[family], split)
    unit = "mG" if split == "inverse" else problem.answer.unit
    record = {"family": family, "split": split, "inputs": inputs, "unit": unit}
    assert science_solver.solve(record) == pytest.approx(value, rel=0.01)


def _name(quantity):
    return quantity.split(" ", 1)[1]


def test_anchors_of_the_steps():
    assert solve("equal_energy_radius", E="3.5e45 erg", B="1.9 mG")[-1][1].to_value("au") == pytest.approx(
        12022, rel=0.01
    )
    assert solve("cs_column", W="1 K km s-1", T="50 K")[0][1].value == pytest.approx(42.87, rel=0.01)
    for speed, mass in ((10, 3.52), (20, 0.88), (30, 0.39)):
        energy = solve("outflow_energy", "chain", M=f"{mass} Msun", v=f"{speed} km s-1", R="0.1 pc")[0][1]
        assert energy.to_value("erg") == pytest.approx(3.5e45, rel=0.01)
    # B[uG] = 9.34 sqrt(n[cm-3]) dV[km/s] / sigma_phi[deg]
    assert solve("dcf", n="1 cm-3", sv=f"{1 / physics.FWHM} km s-1", phi="1 deg")[-1][1].to_value(
        "uG"
    ) == pytest.approx(9.34, rel=0.001)


# ---------------------------------------------------------------- what must follow from the formulas

SCALINGS = [
    ("dcf", "sv", 2, 2.0),
    ("dcf", "n", 4, 2.0),
    ("dcf", "n", 2, 2**0.5),
    ("dcf", "phi", 2, 0.5),
    ("skalidis_tassis", "phi", 2, 2**-0.5),
    ("skalidis_tassis", "sv", 2, 2.0),
    ("dcf_tangent", "sv", 2, 2.0),
    ("structure_function", "n", 4, 2.0),
    ("alfven_speed", "B", 2, 2.0),
    ("alfven_speed", "n", 4, 0.5),
    ("alfven_mach", "B", 2, 0.5),
    ("sonic_mach", "T", 4, 0.5),
    ("energy_density", "B", 2, 4.0),
    ("equal_energy_radius", "E", 8, 2.0),
    ("energy_balance", "M", 2, 0.25),
    ("energy_balance", "R", 2, 16.0),
    ("mass_to_flux", "N", 2, 2.0),
    ("dust_mass", "D", 2, 4.0),
    ("dust_mass", "kappa", 2, 0.5),
    ("cs_column", "W", 2, 2.0),
    ("outflow_mass", "X", 2, 0.5),
    ("outflow_mass", "D", 2, 4.0),
]


@pytest.mark.parametrize(("family", "name", "factor", "expected"), SCALINGS)
def test_scalings(family, name, factor, expected):
    problem = FAMILIES[family].forward
    given = {
        variable.name: (variable.low * variable.high) ** 0.5 * u.Unit(variable.unit)
        for variable in problem.variables
    }
    one = problem.solve(**given)[-1][1]
    assert (problem.solve(**given | {name: factor * given[name]})[-1][1] / one).to_value("") == pytest.approx(
        expected, rel=1e-9
    )


def test_the_tangent_and_the_structure_function_tend_to_dcf_without_q():
    small = {"n": "1e6 cm-3", "sv": "1 km s-1"}
    dcf = solve("dcf", phi="0.1 deg", **small)[-1][1]
    assert (solve("dcf_tangent", phi="0.1 deg", **small)[-1][1] / dcf).to_value("") == pytest.approx(
        2, rel=1e-4
    )
    angle = 2**0.5 * 0.1  # the structure function of independent angles is twice their variance
    assert (solve("structure_function", b=f"{angle} deg", **small)[-1][1] / dcf).to_value(
        ""
    ) == pytest.approx(2, rel=1e-4)


def test_restating_the_unit_changes_neither_answer_nor_grade(everything):
    seen = 0
    for item in everything:
        for unit in ("uG", "nT", "G", "m-3", "m s-1", "J m-3", "au", "kg", "m-2", "J", "rad"):
            if u.Unit(unit).is_equivalent(u.Unit(item.unit)) and unit != item.unit and item.unit:
                value = (item.value * u.Unit(item.unit)).to_value(unit)
                seen += 1
                for factor, expected in ((1.0, True), (1.015, True), (1.03, False), (0.5, False)):
                    assert right(f"{factor * value:.6g} {unit}", item) is expected, (item.id, unit)
    assert seen > 1000


def test_restating_the_inputs_changes_nothing():
    for family in FAMILIES.values():
        for problem in (family.forward, family.chain):
            given = {v.name: (v.low * v.high) ** 0.5 * u.Unit(v.unit) for v in problem.variables}
            one = problem.solve(**given)[-1][1]
            for variable in problem.variables:
                for form in variable.restated:
                    again = form.true(form.stated(given[variable.name]))
                    found = problem.solve(**given | {variable.name: again})[-1][1]
                    assert (found / one).to_value("") == pytest.approx(1, rel=1e-9), (
                        family.name,
                        variable.name,
                        form,
                    )


# ---------------------------------------------------------------- solvers that should fail


def test_a_solver_with_degrees_for_radians_scores_nothing(everything):
    angles = [
        item
        for item in everything
        if any(one.name == "phi" for one in item.inputs)
        or (item.family, item.split) == ("dcf_tangent", "inverse")
    ]
    assert len(angles) > 15 * COUNT
    assert (
        sum(
            right(f"{science_solver.solve(item.record(), degrees=True):.6g} {item.unit}", item)
            for item in angles
        )
        == 0
    )


def test_a_draw_that_a_mistake_answers_nearly_right_is_refused():
    problem = FAMILIES["energy_density"].forward
    given = {"B": 1 * u.mG}
    gold = problem.solve(**given)[-1][1].to_value("erg cm-3")
    for factor, refused in ((1.09, True), (0.92, True), (1.11, False), (0.9, False)):
        found = choices.wrong_answers(problem, {"near": times(factor)}, given, "erg cm-3", gold)
        assert (found is None) is refused, factor
    assert (
        choices.choose([(2 * gold, "double"), (3 * gold, "three")], gold, "erg cm-3", random.Random(0))
        is None
    )


def test_the_mistakes_of_a_choice_are_named(everything):
    for item in everything:
        assert [name == "" for name in item.mistakes] == [i == item.gold for i in range(4)]
        assert len(set(item.mistakes)) == 4


def test_constant_answers_score_at_most_two_percent(items, everything):
    assert export.best_constant(everything) <= 0.02
    for found in items.values():
        assert export.best_constant(found) <= 0.02
    for constant in ("1 mG", "1", "1 km/s", "1e6 cm^-3", "10 Msun", "I do not know", ""):
        assert sum(right(constant, item) for item in everything) <= 0.02 * len(everything)
    # The figure is what grading gives, for the best of the gold answers themselves.
    best = max(
        sum(right(f"{one.value} {one.unit}", item) for item in items["id"]) for one in items["id"][::8]
    )
    assert best / len(items["id"]) <= export.best_constant(items["id"])


def test_choices_cannot_be_told_by_position_size_or_digits(everything):
    n = len(everything)
    rng = random.Random(0)
    assert sum(rng.randrange(4) == item.gold for item in everything) / n == pytest.approx(0.25, abs=0.04)
    for letter in range(4):
        assert sum(item.gold == letter for item in everything) / n == pytest.approx(0.25, abs=0.04)
    values = [[float(option.split()[0]) for option in item.choices] for item in everything]
    for rank in range(4):
        hits = sum(sorted(v)[rank] == v[item.gold] for v, item in zip(values, everything, strict=True))
        assert hits / n == pytest.approx(0.25, abs=0.06), rank
    hits = 0.0
    for v, item in zip(values, everything, strict=True):
        digits = [f"{value:.2e}"[:4] for value in v]
        most = max(digits.count(d) for d in digits)
        often = [i for i, d in enumerate(digits) if digits.count(d) == most]
        hits += (item.gold in often) / len(often)
    assert hits / n == pytest.approx(0.25, abs=0.06)
    for v in values:
        assert choices.distinct(v)


def test_the_usual_mistakes_are_among_the_distractors(everything):
    names = " ".join(name for item in everything for name in item.mistakes)
    for mistake in (
        "degrees for radians",
        "FWHM for sigma",
        "4 pi left out",
        "Q left out",
        "prefix 1000",
        "mean molecular weight",
        "diameter for radius",
    ):
        assert mistake in names
    degrees = next(
        item
        for item in everything
        if "degrees for radians" in item.mistakes and item.family == "dcf" and item.split == "id"
    )
    value = float(degrees.choices[degrees.mistakes.index("degrees for radians")].split()[0])
    assert value == pytest.approx(degrees.value * 3.14159265 / 180, rel=0.01)


# ---------------------------------------------------------------- splits, seeds, files


def test_splits_are_what_they_say(items):
    for item in items["range"]:
        ranges = {v.name: v for v in FAMILIES[item.family].forward.variables}
        for one in item.inputs:
            assert not ranges[one.name].low * 1.0001 < one.value < ranges[one.name].high * 0.9999, item.id
    for item in items["id"]:
        ranges = {v.name: v for v in FAMILIES[item.family].forward.variables}
        for one in item.inputs:
            assert ranges[one.name].low * 0.99 <= one.value <= ranges[one.name].high * 1.01, item.id
            assert (one.unit, one.kind) == (ranges[one.name].unit, "")
    for item in items["unit"]:
        family = FAMILIES[item.family].forward
        plain = {v.name: (v.unit, "") for v in family.variables} | {"": (family.answer.unit, "")}
        stated = {one.name: (one.unit, one.kind) for one in item.inputs} | {"": (item.unit, "")}
        assert stated != plain, item.id
    assert any(one.kind == "fwhm" for item in items["unit"] for one in item.inputs)
    for item in items["inverse"]:
        family = FAMILIES[item.family]
        assert {one.name for one in item.inputs} == {v.name for v in family.forward.variables} - {
            family.inverse.hidden
        } | {family.forward.answer.name}
    for item in items["chain"]:
        assert len(item.steps) >= 2, item.id


def test_no_question_twice_and_none_in_training(items, everything):
    assert (
        len({item.id for item in everything})
        == len({item.question for item in everything})
        == len(everything)
    )
    train = generate.training(3, 0, items["id"])
    assert not {item.question for item in train} & {item.question for item in everything}
    taken = generate.training(3, 0, train)
    assert not {item.question for item in taken} & {item.question for item in train}, (
        "items that are test items already are drawn again"
    )


def test_the_first_items_are_of_all_families(items):
    assert [item.family for item in items["id"][: len(FAMILIES)]] == list(FAMILIES)


def test_seeds():
    assert generate.items("id", 1, 0) == generate.items("id", 1, 0)
    assert generate.items("id", 2, 0)[: len(FAMILIES)] == generate.items("id", 1, 0), (
        "more items leave the first ones as they are"
    )
    assert not {i.question for i in generate.items("id", 1, 0)} & {
        i.question for i in generate.items("id", 1, 1)
    }


def test_same_seed_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from moesaic.evaluate.science import export, generate\n"
        "items = {s: generate.items(s, 1, 5) for s in generate.SPLITS}\n"
        "export.write(Path(sys.argv[1]), items, generate.training(1, 5, items['id']), 64)"
    )
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)],
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": name[1].translate({110: "1", 119: "2"})},
        )
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 6 + 10 + 2 + 1
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_the_questions_of_a_seed_never_change():
    """A changed text, range, constant or order of draws changes published scores: raise Family.version and export.VERSION, then this digest."""
    questions = [
        (item.question, item.answer, item.choices)
        for split in generate.SPLITS
        for item in generate.items(split, 1, 0)
    ]
    assert hashlib.sha256(json.dumps(questions).encode()).hexdigest()[:16] == DIGEST


DIGEST = "013246fc074a1ea1"


def test_printed_numbers():
    assert [text.number(v) for v in (1.7e6, 1700, 15, 0.0125, 3.4e-9, 9999.9, 999.6, 0.00099999)] == [
        "1.70e6", "1700", "15.0", "0.0125", "3.40e-9", "1.00e4", "1000", "0.00100"
    ]  # fmt: skip
    assert text.unit("erg cm-3") == "erg cm^-3"
    assert text.unit("arcsec2") == "arcsec^2"


def test_training_records_are_instruction_data(items):
    record = export.training_record(items["id"][0])
    assert record["instruction"] == record["question"]
    assert re.search(r"\nAnswer: .* mG$", record["output"])
    assert dataclasses.asdict(items["id"][0]).items() <= record.items()
