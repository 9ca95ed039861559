"""The mixture's figures: what they say in words is what the metrics hold, and a mixture that never moves has none."""

from types import SimpleNamespace

import numpy as np
import pytest

from moesaic.report import mixing, sections

SETS = ("code", "math", "talk")


def point(moving=True, variant="v"):
    curves = {}
    for i, name in enumerate(SETS):
        end = (0.5, 0.3, 0.2)[i] if moving else 1 / 3
        curves[f"mixture/weight/{name}"] = [(1, 1 / 3), (5, end)]
        curves[f"valid/loss/{name}"] = [(3, 9.0), (5, 2.0 + i)]
        if moving:
            for e in range(4):
                curves[f"mixture/load/{name}/expert_{e}"] = [(2, 0.25), (4, 0.4 if e == i else 0.2)]
    if moving:
        curves |= {
            "mixture/distance/code/math": [(2, 0.9), (4, 0.25)],
            "mixture/distance/code/talk": [(2, 0.9), (4, 0.5)],
            "mixture/distance/math/talk": [(2, 0.9), (4, 0.125)],
        }
    return SimpleNamespace(variant=variant, stage="tune", label=f"{variant}/tune", curves=curves)


def run(*points):
    return SimpleNamespace(points=points, stages=["construct", "tune"])


def test_figures_say_what_the_metrics_hold():
    made = run(point())
    (weights,), (distances,), (loads,) = mixing.weights(made), mixing.distances(made), mixing.loads(made)
    assert "code from 0.333 to 0.500; math from 0.333 to 0.300; talk from 0.333 to 0.200" in weights
    assert "code and math 0.250; code and talk 0.500; math and talk 0.125" in distances
    assert "math from 0.80 to 1.60 (expert 1)" in loads
    for panel in (weights, distances, loads):
        assert panel.startswith('<svg role="img"')
        assert "NaN" not in panel
    names, matrix = mixing._distances(point())
    assert names == list(SETS)
    assert (matrix == matrix.T).all()
    assert matrix[0, 2] == 0.5
    assert not np.diag(matrix).any()


def test_a_mixture_that_never_moves_has_no_figures_but_its_losses():
    made = run(point(moving=False))
    assert mixing.weights(made) == mixing.distances(made) == mixing.loads(made) == []
    (table,) = mixing.held_out(made)
    assert list(table.head) == ["variant", *SETS, "mean"]
    assert list(table.rows[0]) == ["v", "2.000", "3.000", "4.000", "3.000"]
    assert "Validation loss by dataset at the end of tune" in sections._mixture(made)


def test_switched_off_and_missing_datasets_leave_no_holes():
    one = point()
    one.curves["mixture/weight/off"] = [(1, 0.0), (5, 0.0)]
    other = point(variant="w")
    del other.curves["valid/loss/math"]
    made = run(one, other)
    assert "off and" not in mixing.distances(made)[0]
    (table,) = mixing.held_out(made)
    assert table.rows[1][-1] == table.rows[1][2] == '<span class="none">&ndash;</span>'
    single = point()
    single.curves = {key: v for key, v in single.curves.items() if "math" not in key and "talk" not in key}
    assert mixing.held_out(run(single)) == []


@pytest.mark.parametrize("moving", [True, False])
def test_the_section(moving):
    html = sections._mixture(run(point(moving)))
    assert html.count("<figure") == (3 if moving else 0)
    assert html.count("<table") == 1
