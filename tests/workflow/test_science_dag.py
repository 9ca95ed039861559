"""The science step is part of the workflow exactly where the configuration asks for it."""

import project
from test_dag import change, planned


def test_the_step_runs_where_it_is_asked_for(tmp_path):
    project.make(tmp_path)
    target = "results/dense/evaluate/manifest.json"
    assert "science" not in planned(tmp_path, target)
    change(tmp_path, "data.science", {"items": 1})
    change(tmp_path, "evaluate.suites", ["science"])
    assert planned(tmp_path, target)["science"] == 1
