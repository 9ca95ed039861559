"""The reliability step is part of the workflow exactly where the configuration asks for it; evaluations wait for the parent's."""

import project
import pytest
from test_dag import change, planned

from moesaic import config
from moesaic.errors import InputError
from moesaic.flow import paths


def test_the_step_runs_where_it_is_asked_for(tmp_path):
    project.make(tmp_path)
    target = "results/dense/evaluate/manifest.json"
    assert "reliability" not in planned(tmp_path, target)
    change(tmp_path, "data.reliability", {"sets": ["lookalikes"]})
    change(tmp_path, "evaluate.suites", ["reliability"])
    assert planned(tmp_path, target)["reliability"] == 1


def test_shards_of_every_evaluation(tmp_path):
    project.make(tmp_path)
    change(tmp_path, "evaluate.shards", 3)
    jobs = planned(tmp_path, "results/activation/evaluate/construct/manifest.json")
    assert jobs["evaluate_part"] == 6  # the parent's too
    assert (jobs["evaluate"], jobs["evaluate_dense"]) == (1, 1)


def test_a_stage_s_evaluation_reads_the_parent_s(tmp_path):
    loaded = config.load(project.make(tmp_path))
    found = paths.inputs(loaded, "evaluate", "activation", "tune")
    assert str(found["parent"]) == "results/dense/evaluate/manifest.json"
    assert "parent" not in paths.inputs(loaded, "evaluate", stage="dense")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": {"suites": ["reliability"]}}, "evaluate.suites: reliability needs data.reliability"),
        ({"data": {"reliability": {"sets": ["anli"]}}}, "no reliability set 'anli'; known: advbench"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        config.load(project.make(tmp_path), changes)
