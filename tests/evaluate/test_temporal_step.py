"""The step, its lm-eval folder run by lm-eval alone, and the suite in an evaluation."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import project
import pytest
from tiny import tiny_llama

from moesaic import config
from moesaic.errors import InputError
from moesaic.evaluate import compare, likelihood
from moesaic.evaluate.scores import item_table, task_scores
from moesaic.evaluate.temporal import lm_tasks, step, suite
from moesaic.evaluate.temporal.verify import prompt
from moesaic.flow import manifest, paths
from moesaic.flow.step import STEPS, execute
from moesaic.schema import Evaluate, Temporal
from moesaic.settings import step_settings

TASKS = ["year_shift", "temporal_nli", "hour_adjustment_12h"]
SETTINGS = {"tasks": TASKS, "train": 6, "validation": 3, "test": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The step's folder, relative to a working directory, and that directory."""
    folder = tmp_path_factory.mktemp("temporal")
    before = Path.cwd()
    os.chdir(folder)
    settings = {"temporal": Temporal(**SETTINGS).model_dump(mode="json"), "seed": 1}
    execute(STEPS["temporal"], settings, {}, paths.folder("temporal"))
    os.chdir(before)
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return manifest.read(paths.folder("temporal"))


def test_the_step_writes_items_counts_and_tasks(here):
    manifest.verify(here)
    for split, count in (("train", 6), ("validation", 3), ("test", 5)):
        items = step.read(here, split)
        assert len(items) == 3 * 2 * count == here.metrics["items"][split]
        assert {item.split for item in items} == {split}
        assert {item.task for item in items} == set(TASKS)
    assert here.metrics["counts"]["year_shift"] == {
        "source": "generated",
        "choice": {"train": 6, "validation": 3, "test": 5},
        "short": {"train": 6, "validation": 3, "test": 5},
    }
    assert "storytelling" in here.metrics["missing"]
    stats = json.loads((here.folder / "stats.json").read_text())
    assert stats["lm_eval"]["temporal_temporal_nli"]["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert stats["lm_eval"]["temporal_year_shift"] == {
        "task": "year_shift",
        "form": "choice",
        "group": "math-time",
        "n": 5,
        "chance": 0.25,
    }
    first = json.loads(
        (here.folder / "tasks/data/temporal_year_shift.test.jsonl").read_text().splitlines()[0]
    )
    item = next(item for item in step.read(here, "test") if item.id == first["id"])
    assert first["prompt"] == prompt(item)
    shown = (here.folder / "tasks/data/temporal_year_shift.validation.jsonl").read_text()
    assert not any(item.id in shown for item in step.read(here, "test"))


def test_same_seed_same_bytes(here, tmp_path):
    settings = {"temporal": Temporal(**SETTINGS).model_dump(mode="json"), "seed": 1}
    execute(STEPS["temporal"], settings, {}, tmp_path / "results/prepare/temporal")
    again = manifest.read(tmp_path / "results/prepare/temporal")
    # The task files name their own folder; all else is the same.
    assert [o for o in again.outputs if not o.path.endswith(".yaml")] == [
        o for o in here.outputs if not o.path.endswith(".yaml")
    ]
    execute(STEPS["temporal"], settings | {"seed": 2}, {}, tmp_path / "results/prepare/temporal")
    other = manifest.read(tmp_path / "results/prepare/temporal")
    assert {o.path: o.sha256 for o in other.outputs}["test.jsonl"] != {
        o.path: o.sha256 for o in here.outputs
    }["test.jsonl"]


def test_a_damaged_file_is_named(here, tmp_path):
    copy = manifest.Manifest(**{**here.__dict__, "folder": tmp_path})
    (tmp_path / "test.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(InputError, match=r"test.jsonl: missing or damaged .* run the temporal step again"):
        step.read(copy, "test")
    with pytest.raises(InputError, match=r"train.jsonl: missing"):
        step.read(copy, "train")


def test_a_task_that_cannot_be_made_is_refused_by_name():
    with pytest.raises(InputError, match=r"storytelling cannot be generated .* data.temporal.tram"):
        step.collect(Temporal(tasks=["storytelling"]), 0)


def settings(shots):
    return Evaluate(tasks=[], bootstrap=100, batch=4, suites=["temporal"], temporal_shots=shots).model_dump(
        mode="json"
    )


@pytest.fixture(scope="module")
def model():
    return tiny_llama(max_position_embeddings=2048), project.tokenizer_of_library()


def test_the_suite_scores_every_task_and_kind(here, model, tmp_path):
    found = suite.run(*model, settings([0, 2]), here, tmp_path, 7)
    scores = task_scores(found, 100, 7)
    by_name = {item["task"]: item for item in scores}
    names = {lm_tasks.name_of(task, form) for task in TASKS for form in ("choice", "short")}
    groups = {f"temporal_{kind}{form}" for kind in ("math_time", "pure_time") for form in ("", "_short")}
    assert set(by_name) == {name + end for name in names | groups for end in ("", "@2")}
    assert all(item["metric"] == "acc" and item["chance"] is not None for item in scores)
    mean = by_name["temporal_math_time"]
    assert mean["value"] == pytest.approx(
        sum(by_name[f"temporal_{task}"]["value"] for task in TASKS if task != "temporal_nli") / 2
    )
    assert mean["n"] == 10
    assert mean["ci_low"] <= mean["value"] <= mean["ci_high"]
    assert mean["chance"] == pytest.approx(0.25)
    assert not any(item["task"] == "mc/average" for item in scores)


def test_a_task_without_examples_is_left_out_of_few_shot_prompts(tmp_path, monkeypatch, caplog):
    """MCTACO with nothing but its test file: asked zero-shot, and never shown its own items."""
    monkeypatch.chdir(tmp_path)
    lines = [f"He ran {i} miles.\tHow long?\t{i} hours\tyes\tEvent Duration\n" for i in range(8)]
    Path("mctaco").mkdir()
    Path("mctaco/test_9442.tsv").write_text("".join(lines))
    values = Temporal(tasks=["year_shift"], forms=["choice"], train=2, validation=1, test=3, mctaco="mctaco")
    asked = {"temporal": values.model_dump(mode="json"), "seed": 1}
    execute(STEPS["temporal"], asked, {}, paths.folder("temporal"))
    source = manifest.read(paths.folder("temporal"))
    named = [call.tasks for call in suite.calls(settings([0, 3, 4]), source)]
    assert named == [["temporal_mctaco_event_duration", "temporal_year_shift"], ["temporal_year_shift"], []]
    seen = []
    monkeypatch.setattr(suite.harness, "run", lambda *given: seen.append(given[2]["tasks"]) or [])
    suite.run(None, None, settings([0, 3, 4]), source, tmp_path, 7)
    assert seen == named
    assert (
        "temporal_shots: 3: left out, for want of as many examples: temporal_mctaco_event_duration"
        in caplog.text
    )
    config = (source.folder / "tasks/temporal_mctaco_event_duration.yaml").read_text()
    assert "num_fewshot: 0" in config
    assert "num_fewshot" not in (source.folder / "tasks/temporal_year_shift.yaml").read_text()


def test_intervals_resample_questions_with_their_candidates(model, tmp_path, monkeypatch):
    """Eight questions with five candidates each, judged alike: as wide as of eight items, alone, in the mean and beside another model."""
    monkeypatch.chdir(tmp_path)
    lines = [
        f"He ran {i} miles.\tHow long?\t{j} hours\t{'yes' if i % 2 else 'no'}\tEvent Duration\n"
        for i in range(8)
        for j in range(5)
    ]
    Path("mctaco").mkdir()
    Path("mctaco/test_9442.tsv").write_text("".join(lines))
    values = Temporal(tasks=["year_shift"], forms=["choice"], train=2, validation=1, test=40, mctaco="mctaco")
    execute(
        STEPS["temporal"],
        {"temporal": values.model_dump(mode="json"), "seed": 1},
        {},
        paths.folder("temporal"),
    )
    source = manifest.read(paths.folder("temporal"))
    name = "temporal_mctaco_event_duration"
    found = {item.task: item for item in suite.run(*model, settings([0]), source, tmp_path / "w", 7)}
    assert len(found[name].keys) == 40
    assert len(set(found[name].units)) == found[name].metrics[0].estimate.n == 8
    assert found["temporal_year_shift"].units == []
    assert found["temporal_year_shift"].metrics[0].estimate.n == 40

    alike = np.array([float(unit > sorted(found[name].units)[19]) for unit in found[name].units])
    by_hand = replace(found[name], items={"acc": alike})
    known = json.loads((source.folder / "stats.json").read_text())["lm_eval"]
    (mean,) = suite.means([by_hand], known, 2000, 0)
    estimate = mean.metrics[0].estimate
    assert (estimate.value, estimate.n) == (0.5, 8)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * (0.25 / 8) ** 0.5, rel=0.15)
    text = likelihood.DomainLoss(*np.ones((3, 2)), ["a", "b"], None)
    for file, scores in (("a", by_hand), ("b", replace(by_hand, items={"acc": alike * 0}))):
        item_table({"d": text}, set(), [scores]).to_parquet(file)
    value, low, high, n = compare.paired(Path("a"), Path("b"), name)
    assert (value, n) == (0.5, 8)
    assert (high - low) / 2 == pytest.approx(1.96 * (0.25 / 8) ** 0.5, rel=0.15)


@pytest.mark.slow
def test_lm_eval_alone_gives_the_same_scores(here, model, tmp_path):
    """lm-eval on the folder, in a process that refuses every import of moesaic; zero-shot and two-shot, to the last digit."""
    model[0].save_pretrained(tmp_path / "model")
    model[1].save_pretrained(tmp_path / "model")
    found = {
        item["task"]: item["value"]
        for item in task_scores(suite.run(*model, settings([0, 2]), here, tmp_path, 7), 100, 7)
    }
    code = """
import json, sys
class No:
    def find_spec(self, name, *a):
        if name.split('.')[0] == 'moesaic': raise ImportError('moesaic is hidden')
sys.meta_path.insert(0, No())
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path='results/prepare/temporal/tasks', include_defaults=False)
groups = ['temporal_math_time', 'temporal_math_time_short', 'temporal_pure_time', 'temporal_pure_time_short']
out = {}
for shots in (0, 2):
    done = simple_evaluate('hf', f'pretrained={sys.argv[1]},dtype=float32', groups, num_fewshot=shots, batch_size=4, device='cpu',
                           task_manager=manager, fewshot_random_seed=7, bootstrap_iters=0)
    out[shots] = {name: item['acc,none'] for name, item in done['results'].items()}
print(json.dumps(out))
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    call = [sys.executable, "-c", code, str(tmp_path / "model")]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for shots, results in json.loads(done.stdout.splitlines()[-1]).items():
        assert len(results) == 2 * len(TASKS) + 4
        for name, value in results.items():
            assert value == pytest.approx(found[name + (f"@{shots}" if shots != "0" else "")], abs=1e-6), name


def test_the_workflow_asks_for_it_only_where_the_configuration_does(tmp_path):
    base = config.load(project.make(tmp_path))
    assert "temporal" not in paths.inputs(base, "evaluate", None, "dense")
    assert "prepare/temporal" not in paths.inputs(base, "report")
    with pytest.raises(InputError, match=r"data.temporal is null"):
        step_settings(base, "temporal")
    with pytest.raises(InputError, match=r"evaluate.suites: temporal needs data.temporal"):
        config.load(tmp_path / "config.yaml", {"evaluate": {"suites": ["temporal"]}})
    with pytest.raises(InputError, match=r"no temporal task 'yearshift'"):
        config.load(tmp_path / "config.yaml", {"data": {"temporal": {"tasks": ["yearshift"]}}})
    asked = config.load(
        tmp_path / "config.yaml", {"data": {"temporal": {}}, "evaluate": {"suites": ["temporal"]}}
    )
    assert paths.inputs(asked, "evaluate", None, "dense")["temporal"] == Path(
        "results/prepare/temporal/manifest.json"
    )
    assert "prepare/temporal" in paths.inputs(asked, "report")


@pytest.mark.slow
def test_an_evaluation_with_the_suite(tmp_path, monkeypatch):
    """The whole step on the dense parent: scores, items for paired comparisons, and mc/average left alone."""
    path = project.make(
        tmp_path, {"data": {"temporal": SETTINGS}, "evaluate": {"suites": ["temporal"], "tasks": []}}
    )
    monkeypatch.chdir(tmp_path)
    for name in ("dense", "documents", "tokens", "tasks", "temporal"):
        project.run(path, name)
    out = project.run(path, "evaluate", stage="dense")
    scores = {item["task"]: item for item in json.loads((out / "scores.json").read_text())}
    assert scores["temporal_pure_time_short"]["n"] == 5
    assert "mc/average" not in scores
    difference = compare.paired(out / "items.parquet", out / "items.parquet", "temporal_year_shift")
    # Five items that agree leave much open.
    assert difference == (0.0, pytest.approx(-0.521824), pytest.approx(0.521824), 5)
