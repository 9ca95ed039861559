"""The suite on a tiny model: the harness alone gives the same scores, a killed run goes on."""

import json
import os
import subprocess
import sys

import numpy as np
import project
import pytest
from reliability_inputs import TOK, settings
from tiny import tiny_llama

from moesaic.errors import InputError
from moesaic.evaluate import compare, harness, kept, likelihood
from moesaic.evaluate.reliability import suite
from moesaic.evaluate.scores import item_table


@pytest.fixture(scope="module")
def found(source, model, tmp_path_factory):
    return suite.run(
        model, TOK, settings(), source, tmp_path_factory.mktemp("work"), 0, kept.Identity("model-1")
    )


def scores(found):
    return {(item.task, metric.name): metric for item in found.tasks for metric in item.metrics}


def test_every_axis_has_its_rows(found):
    got = scores(found)
    assert got["rel_sentences_plain", "acc"].chance == 0.5
    assert got["rel_truthfulqa_mc2", "acc"].chance == 0.5
    assert got["reliability/hallucination", "acc"].estimate.n == 6  # questions, not their three forms
    assert got["reliability/style", "acc"].estimate.n == 6
    assert got["reliability/over_refusal", "refusal"].chance is None
    assert ("reliability/refusal", "refusal") not in got  # cona is missing
    assert sorted(found.report["missing"]) == ["cona"]
    style = [
        got[f"rel_sentences_{name}", "acc"].estimate.value
        for name in ("typos", "capitals", "shakespeare", "bible", "tweet")
    ]
    assert got["reliability/style", "acc"].estimate.value == pytest.approx(np.mean(style))
    drop = got["rel_sentences_plain", "acc"].estimate.value - np.mean(style)
    assert got["reliability/style_drop", "acc_drop"].estimate.value == pytest.approx(drop)
    assert got["reliability/style_drop", "acc_drop"].estimate.n == 6
    assert got["reliability/calibration", "ece"].estimate.n == 6 * 6 + 2 * 6
    bins = found.report["bins"]["rel_sentences_plain"]
    assert sum(item["n"] for item in bins) == 6
    assert "rel_truthfulqa_mc2" not in found.report["bins"]


def test_rows_with_dola_stand_beside_those_without(source, model, found, tmp_path):
    got = scores(found)
    assert (
        got["reliability/hallucination_dola", "acc"].chance == got["reliability/hallucination", "acc"].chance
    )
    forms = [f"rel_truthfulqa_{form}" for form in ("mc1", "mc2", "binary")]
    gain = np.mean([got[f"{f}_dola", "acc"].estimate.value - got[f, "acc"].estimate.value for f in forms])
    assert got["reliability/dola_gain", "acc_gain"].estimate.value == pytest.approx(gain)
    assert "rel_truthfulqa_mc1_dola" not in found.report["bins"]
    without = suite.run(model, TOK, settings(reliability={}), source, tmp_path, 0, kept.Identity("model-1"))
    rest = {key: metric for key, metric in got.items() if "dola" not in key[0]}
    assert scores(without) == rest  # DoLa changes nothing of the others


@pytest.mark.slow
def test_the_harness_alone_gives_the_same_scores(source, model, found, tmp_path):
    """lm_eval as a command where moesaic cannot be imported."""
    model.save_pretrained(tmp_path / "model")
    TOK.save_pretrained(tmp_path / "model")
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide/sitecustomize.py").write_text(
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, *a):\n"
        "        if name.split('.')[0] == 'moesaic': raise ImportError('moesaic is hidden')\n"
        "sys.meta_path.insert(0, No())\n"
    )
    got = scores(found)
    for tasks, extra in (
        ("rel_truthfulqa_mc1,rel_truthfulqa_mc2,rel_sentences_typos", []),
        ("rel_lookalikes", ["--apply_chat_template"]),
    ):
        command = [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={tmp_path}/model",
            "--device",
            "cpu",
        ]
        command += [
            "--include_path",
            str(source.folder / "tasks"),
            "--tasks",
            tasks,
            "--output_path",
            str(tmp_path / "out.json"),
            *extra,
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ
            | {"PYTHONPATH": str(tmp_path / "hide"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (result,) = tmp_path.glob("out_*.json")
        compared = set()
        for task, values in json.loads(result.read_text())["results"].items():
            for key, value in values.items():
                metric = key.partition(",")[0]
                if (task, metric) in got:
                    assert got[task, metric].estimate.value == pytest.approx(value, rel=1e-5), (task, metric)
                    compared.add(task)
        assert compared == set(tasks.split(","))
        assert len(json.loads(result.read_text())["results"]) == len(tasks.split(","))
        result.unlink()


def test_a_killed_run_repeats_only_the_unfinished_task(source, model, found, tmp_path, monkeypatch):
    real, ran = harness._evaluate, []

    def counted(lm, tasks, *rest):
        ran.extend(tasks["tasks"])
        if len(ran) == 4:
            raise KeyboardInterrupt
        return real(lm, tasks, *rest)

    monkeypatch.setattr(harness, "_evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        suite.run(model, TOK, settings(), source, tmp_path, 0, kept.Identity("model-1"))
    done, unfinished = ran[:3], ran[3]
    ran[:] = ["-"] * 4
    again = suite.run(model, TOK, settings(), source, tmp_path, 0, kept.Identity("model-1"))
    assert ran[4] == unfinished
    assert not set(ran) & set(done)
    assert len(ran) - 4 + 3 == len(found.report["tasks"])
    for one, other in zip(again.tasks, found.tasks, strict=True):
        assert (one.task, one.metrics, one.keys, one.group) == (
            other.task,
            other.metrics,
            other.keys,
            other.group,
        )
        assert {name: values.tolist() for name, values in one.items.items()} == {
            name: values.tolist() for name, values in other.items.items()
        }
    ran[:] = ["-"] * 4
    suite.run(model, TOK, settings(), source, tmp_path, 0, kept.Identity("model-1"))
    assert ran == ["-"] * 4
    suite.run(model, TOK, settings(), source, tmp_path, 0, kept.Identity("model-2"))
    assert len(ran) - 4 == len(found.report["tasks"])


def test_a_damaged_kept_file_is_named(source, model, tmp_path):
    suite.run(model, TOK, settings(items=1), source, tmp_path, 0, kept.Identity("m"))
    path = next((tmp_path / "tasks").glob("rel_sentences_bible-*.json"))
    path.write_text("[{")
    with pytest.raises(InputError, match=f"{path.name}: damaged"):
        suite.run(model, TOK, settings(items=1), source, tmp_path, 0, kept.Identity("m"))


def test_without_a_chat_template_the_key_is_named(source, model, tmp_path):
    bare = project.tokenizer_of_library()
    bare.chat_template = None
    with pytest.raises(InputError, match=r"data.reliability.prompt: chat, but .* has no chat template"):
        suite.run(model, bare, settings(), source, tmp_path, 0, kept.Identity("m"))


def test_paired_differences_of_two_evaluations(source, found, tmp_path):
    other = suite.run(
        tiny_llama(seed=5, max_position_embeddings=1024),
        TOK,
        settings(),
        source,
        tmp_path,
        0,
        kept.Identity("model-5"),
    )
    text = likelihood.DomainLoss(np.array([3.0, 4.0]), np.array([8, 9]), np.array([2, 2]), ["a", "b"], None)
    paths = []
    for name, result in (("a", found), ("b", other)):
        item_table({"d": text}, set(), result.tasks).to_parquet(tmp_path / name)
        paths.append(tmp_path / name)
    rows = {(row["task"], row["metric"]): row for row in compare.table(*paths, resamples=200)}
    one, two = scores(found), scores(other)
    for key in [
        ("rel_sentences_typos", "acc"),
        ("rel_sentences_plain", "ece"),
        ("rel_truthfulqa_mc2", "acc"),
        ("reliability/style", "acc"),
        ("reliability/over_refusal", "refusal"),
    ]:
        assert rows[key]["value"] == pytest.approx(
            one[key].estimate.value - two[key].estimate.value, abs=2e-6
        ), key
    assert all(
        row["ci_low"] <= row["value"] <= row["ci_high"] for row in rows.values() if row["metric"] != "ece"
    )
    same = compare.table(paths[0], paths[0], resamples=100)
    assert {row["value"] for row in same} == {0.0}
    # Of rates that agree on every item, what so many items leave open; text, Brier scores (0 to 2) and calibration errors have no such bound.
    exact = {
        (row["task"], row["metric"]): 1 - 0.025 ** (1 / row["n"])
        for row in same
        if row["metric"] not in ("bits_per_byte", "brier", "ece")
    }
    for row in same:
        bound = exact.get((row["task"], row["metric"]), 0.0)
        assert (-row["ci_low"], row["ci_high"]) == (pytest.approx(bound, abs=1e-6),) * 2, row
