"""Which of the results are the configuration's: what is compared, and what a damaged manifest counts as."""

import pytest
from mlflow_runs import RESULTS, runs, step
from report import fake_results

from moesaic import config as configuration
from moesaic.flow import current, hooks
from moesaic.settings import SAMPLE_KEYS, compared, step_settings

SAMPLED = {
    "data": {"temporal": {}},
    "distill": {"data": "samples", "loss": "dpkd", "teacher": "dense", "offline": None},
    "evaluate": {"instructions": {}},
}


def asked(key, value):
    """What each step is asked for, as far as it is compared."""
    changes = configuration.merge(SAMPLED, configuration.parse_override(f"{key}={value}"))
    config = fake_results.load_config(["construct", "preference", "distill"], ["activation"], **changes)
    return {place.folder: compared(place.settings) for place in current.places(config, RESULTS)}


@pytest.mark.parametrize("section", ["preference.sampling", "preference.rubric", "distill.samples", "evaluate.instructions"])  # fmt: skip
def test_how_much_is_done_at_once_is_no_reason_to_do_it_again(section):
    stock = asked("seed", 17)
    assert asked(f"{section}.batch", 3) == stock
    assert asked(f"{section}.new_tokens", 7) != stock


@pytest.mark.parametrize(("section", "same"), [("preference.sampling", False), ("distill.samples", False), ("preference.rubric", True), ("evaluate.instructions", True)])  # fmt: skip
def test_the_length_of_a_part_says_whose_a_question_is_where_there_are_shards(section, same):
    stock = asked("seed", 17)
    assert (asked(f"{section}.part", 5) == stock) is same


def test_a_project_that_never_set_it_compares_as_before():
    config = fake_results.load_config(["construct", "preference"], ["activation"], data={"temporal": {}})
    for name in ("sample", "rate"):
        settings = step_settings(config, name, "activation")
        assert compared(settings) == settings


def test_what_sampled_answers_alone_read_is_no_setting_without_them():
    config = fake_results.load_config(["construct", "distill"], ["activation"])
    assert config.distill.data != "samples"
    assert not {*SAMPLE_KEYS} & {*step_settings(config, "distill", "activation")["distill"]}


@pytest.mark.parametrize("stage", ["preference", "distill"])
def test_nor_is_how_many_are_scored_at_once(stage):
    assert asked(f"{stage}.score_batch", 2) == asked("seed", 17)


def test_the_rows_of_an_offline_teachers_pass_are(monkeypatch):
    """The tail is drawn batch by batch."""
    monkeypatch.setitem(SAMPLED, "distill", {"data": "chat", "loss": "kd", "teacher": "dense"})
    assert asked("distill.offline", "{batch: 2}") != asked("distill.offline", "{batch: 4}")


def test_a_damaged_manifest_counts_as_missing(config, capsys):
    """At the end of a run: the steps that read it are not the configuration's, and nothing stops for it."""
    hooks.finish(config, "FINISHED")
    assert "bits/byte" in capsys.readouterr().err
    path = RESULTS / "prepare/tokens/manifest.json"
    path.write_text(path.read_text()[:100])
    hooks.finish(config, "FINISHED")
    said = capsys.readouterr().err
    assert "No table" in said
    assert "WARNING" not in said, "nobody knows of which settings it was"
    found = current.look(config, RESULTS)
    assert found[RESULTS / "prepare/tokens"].done is None
    lost = {item.place.key for item in found.values() if item.configured and not item.finished}
    assert {"activation/construct", "random/pretrain", "report"} <= lost
    assert found[RESULTS / "prepare/documents"].finished
    assert step(config, "prepare/tokens").info.status == "FAILED"
    assert len(runs(config, kind="workflow")) == 1
