"""The images step is part of the workflow exactly where the configuration asks for it."""

import pictured
import project
from test_dag import planned


def test_the_step_runs_where_it_is_asked_for(tmp_path):
    target = "results/activation/evaluate/tune/manifest.json"
    project.make(tmp_path / "plain")
    assert "images" not in planned(tmp_path / "plain", target)
    pictured.make(tmp_path / "pictured")
    assert planned(tmp_path / "pictured", target)["images"] == 1
