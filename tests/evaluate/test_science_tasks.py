"""The step, the task folder in lm-evaluation-harness with and without this package, and the suite in the evaluation step."""

import json
import subprocess
import sys
from pathlib import Path

import project
import pytest
import yaml
from tiny import tiny_llama

from moesaic import config
from moesaic.errors import InputError
from moesaic.evaluate import harness
from moesaic.evaluate.science import suite
from moesaic.flow import files, manifest, paths, step
from moesaic.schema import Evaluate, Science
from moesaic.settings import step_settings

SPLITS = ["id", "range", "unit", "inverse", "chain"]
TASKS = [f"sciqa_dcf{kind}_{split}" for kind in ("", "_mc") for split in SPLITS]


def make(out: Path, **settings):
    values = Science(**{"items": 1, "train": 1, "max_tokens": 4} | settings).model_dump(mode="json")
    step.execute(step.STEPS["science"], {"science": values}, {}, out)
    return manifest.read(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished step of one item per family and split."""
    out = tmp_path_factory.mktemp("project") / "results/prepare/science"
    make(out)
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model, in memory and on disk."""
    where = tmp_path_factory.mktemp("model")
    tokenizer = project.tokenizer_of_library()
    made = tiny_llama(max_position_embeddings=1024)
    made.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return made, tokenizer, where


def test_the_step_writes_the_same_bytes_again(folder, tmp_path):
    first, again = manifest.read(folder), make(tmp_path / "again")
    assert first.outputs == again.outputs
    assert sorted(first.metrics["tasks"]) == sorted(TASKS)
    assert {item["rows"] for item in first.metrics["tasks"].values()} == {16}
    assert first.metrics["tasks"]["sciqa_dcf_mc_id"]["chance"] == 0.25
    assert make(tmp_path / "other", seed=1).outputs != first.outputs


def test_the_step_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "astropy", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[science\]'"):
        make(tmp_path / "science")


def test_a_model_that_knows_everything_scores_one(folder):
    """Through the harness: prompts, gold answers and the grader fit together; the wrong ones give exactly what is expected."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Oracle(LM):
        """Answers from the item itself: right to `factor`."""

        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def generate_until(self, requests, disable_tqdm=True):
            return [f" That makes {self.factor * r.doc['value']:.5e} {r.doc['unit']}." for r in requests]

        def loglikelihood(self, requests, disable_tqdm=True):
            return [
                (0.0 if r.args[1].strip() == "ABCD"[(r.doc["gold"] + (self.factor > 1)) % 4] else -5.0, False)
                for r in requests
            ]

        def loglikelihood_rolling(self, requests, disable_tqdm=True):
            raise NotImplementedError

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    for factor, expected in (
        (1.0, (1.0, 1.0, 1.0, 1.0)),
        (1.05, (0.0, 1.0, 1.0, 0.0)),
        (2.0, (0.0, 0.0, 1.0, 0.0)),
    ):
        found = lm_eval.evaluate(
            Oracle(factor), manager.load(["sciqa_dcf", "sciqa_dcf_mc"]), bootstrap_iters=0
        )
        assert sorted(found["results"]) == sorted([*TASKS, "sciqa_dcf", "sciqa_dcf_mc"])
        for name, result in found["results"].items():
            metrics = ("acc",) if "_mc" in name else ("acc", "acc_10", "parsed")
            wanted = (expected[3],) if "_mc" in name else expected[:3]
            assert tuple(result[f"{metric},none"] for metric in metrics) == wanted, name


def test_prompts(folder):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = manager.load(["sciqa_dcf_id", "sciqa_dcf_mc_unit"])["tasks"]
    task = found["sciqa_dcf_id"]
    task.set_config(key="num_fewshot", value=2)
    task.set_fewshot_seed(seed=1)
    doc = next(iter(task.test_docs()))
    prompt = task.fewshot_context(doc, 2)
    assert prompt.startswith("Physics of magnetised molecular clouds.")
    assert prompt.count("\nAnswer: ") == 2
    assert prompt.endswith(f"Question: {doc['question']}\nAnswer:")
    task = found["sciqa_dcf_mc_unit"]
    doc = next(iter(task.test_docs()))
    assert task.doc_to_text(doc).endswith(
        f"\nA. {doc['choices'][0]}\nB. {doc['choices'][1]}\nC. {doc['choices'][2]}\nD. {doc['choices'][3]}\nAnswer:"
    )
    assert task.doc_to_choice(doc) == ["A", "B", "C", "D"]
    assert task.doc_to_target(doc) == doc["gold"]


OUTSIDE = """
import json, sys
class Hidden:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("moesaic", "astropy"):
            raise ImportError(name + " is hidden")
sys.meta_path.insert(0, Hidden())
import lm_eval
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path=sys.argv[1], include_defaults=False)
found = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": sys.argv[2], "dtype": "float32"}, tasks=["sciqa_dcf", "sciqa_dcf_mc"], task_manager=manager, limit=3,
    batch_size=2, device="cpu", bootstrap_iters=0, log_samples=False,
)
print(json.dumps({name: {m.split(",")[0]: v for m, v in r.items() if m.endswith(",none") and "stderr" not in m} for name, r in found["results"].items()}))
"""


def test_the_harness_alone_gives_the_suites_scores(folder, model, tmp_path, monkeypatch):
    """`lm_eval --include_path` in a process that has neither moesaic nor astropy, and the suite: the same to the last digit."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", str(folder / "tasks"), str(moved)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, str(moved), str(model[2])],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = json.loads(done.stdout.splitlines()[-1])
    settings = Evaluate(items=3, batch=2, bootstrap=100, suites=["science"], tasks=[]).model_dump(mode="json")
    scores = suite.run(model[0], model[1], settings, manifest.read(folder), tmp_path / "work", 0)
    ours = {item.task: {metric.name: metric.estimate.value for metric in item.metrics} for item in scores}
    assert {name: ours[name] for name in TASKS} == {name: alone[name] for name in TASKS}
    assert not any(item.multiple_choice for item in scores), "mc/average is for the tasks that were asked for"
    chances = {item.task: {metric.name: metric.chance for metric in item.metrics} for item in scores}
    assert chances["sciqa_dcf_mc"] == {"acc": 0.25}
    assert 0 < chances["sciqa_dcf_id"]["acc"] < 0.2
    for group in ("sciqa_dcf", "sciqa_dcf_mc"):
        mean = sum(alone[f"{group}_{split}"]["acc"] for split in SPLITS) / 5
        assert ours[group]["acc"] == pytest.approx(mean)
        others = sum(alone[f"{group}_{split}"]["acc"] for split in SPLITS[1:]) / 4
        assert ours[f"{group}_drop"]["acc_drop"] == pytest.approx(alone[f"{group}_id"]["acc"] - others)


def test_the_drop_out_of_distribution_and_its_interval():
    import numpy as np

    known = {
        f"g_{split}": {"group": "g", "split": split, "chance": 0.25} for split in ("id", "range", "unit")
    }
    values = {"g_id": [1, 1, 1, 0] * 25, "g_range": [1, 0, 0, 0] * 25, "g_unit": [1, 1, 0, 0] * 25}
    found = [
        harness.TaskScores(name, [], {"acc": np.asarray(v, dtype=float)}, [], False)
        for name, v in values.items()
    ]
    mean, drop = suite.means(found, known, 2000, 0)
    assert mean.metrics[0].estimate.value == pytest.approx(0.5)
    estimate = drop.metrics[0].estimate
    assert estimate.value == pytest.approx(0.75 - 0.375)
    # standard error: sqrt(.1875 / 100 + (.1875 + .25) / 400)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * 0.0545, rel=0.1)
    assert estimate.n == 300


def test_configuration(tmp_path):
    path = project.make(tmp_path)
    plain = config.load(path)
    assert "prepare/science" not in paths.inputs(plain, "report")
    assert "science" not in paths.inputs(plain, "evaluate", None, "dense")
    with pytest.raises(InputError, match=r"data\.science is null"):
        step_settings(plain, "science")
    with pytest.raises(InputError, match=r"evaluate\.suites: science needs data\.science"):
        config.load(path, {"evaluate": {"suites": ["science"]}})
    asked = config.load(path, {"data": {"science": {"items": 2}}, "evaluate": {"suites": ["science"]}})
    where = paths.folder("science") / "manifest.json"
    assert paths.inputs(asked, "evaluate", None, "dense")["science"] == where
    assert paths.inputs(asked, "report")["prepare/science"] == where
    assert step_settings(asked, "science") == {
        "science": {"items": 2, "train": 20, "max_tokens": 128, "seed": 0}
    }
    other = config.load(
        path, {"data": {"science": {"items": 2}}, "evaluate": {"suites": ["science"]}, "seed": 99}
    )
    assert step_settings(other, "science") == step_settings(asked, "science"), (
        "runs are compared on the same items"
    )


def test_yaml_is_the_harnesss_own(folder):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: f"!{loader.construct_scalar(node)}")
    read = {path.stem: yaml.load(path.read_text(), Loader) for path in (folder / "tasks").glob("*.yaml")}
    assert sorted(read) == sorted([*TASKS, "sciqa_dcf", "sciqa_dcf_mc"])
    assert read["sciqa_dcf_id"]["process_results"] == "!utils.process_results"
    assert read["sciqa_dcf"]["task"] == [f"sciqa_dcf_{split}" for split in SPLITS]
    assert "moesaic" not in (folder / "tasks/utils.py").read_text()
    assert files.read_json(folder / "stats.json")["train"] == 16
