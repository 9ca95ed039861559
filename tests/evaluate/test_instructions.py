"""Answers to held-out instructions: the scores by hand, the sides, the seeds, and the whole of it in an evaluation and in the report."""

import contextlib
import json

import numpy as np
import project
import pytest

from moesaic import config
from moesaic.data import questions
from moesaic.data.questions import Question
from moesaic.errors import InputError
from moesaic.evaluate import bootstrap, instructions
from moesaic.flow import manifest, paths
from moesaic.flow.step import STEPS, execute

OWN = {"seeds": 2, "items": 3, "new_tokens": 6, "batch": 6, "part": 2, "max_prompt": 100}


def lcs(a, b):
    """Length of the longest common subsequence, by the table."""
    best = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1, j + 1] = best[i, j] + 1 if x == y else max(best[i, j + 1], best[i + 1, j])
    return best[-1, -1]


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("the cat sat on the mat", "the mat sat"),
        ("one two three", "three two one two"),
        ("a b", ""),
        ("x", "x"),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(reference, text):
    a, b = reference.split(), text.split()
    common = lcs(a, b)
    expected = 200 * common / (len(a) + len(b)) if common else 0.0
    assert instructions.rouge_l(reference, text) == pytest.approx(expected)


def test_rouge_stems_and_exact_match_cleans_up():
    assert instructions.rouge_l("he jumps, often", "He jumped often!") == pytest.approx(100.0)
    assert instructions.exact("The answer:  42.", "the answer 42") == 1.0
    assert instructions.exact("the answer", "answer") == 0.0, "articles stay"


def question(i):
    return Question(f"s/{i}", "s", [1, i, i + 1], [5, 2])


def answer(text, ids=(4, 2)):
    return {"text": text, "ids": list(ids), "finished": True}


def test_scores_by_length_seed_and_question():
    items = [question(i) for i in range(3)]
    references = ["yes it is", " ".join(["word"] * 40), " ".join(["w"] * 71)]
    told = [
        [answer("yes it is"), answer("no")],
        [answer("word " * 40), answer("word " * 40)],
        [answer(""), answer("", ids=[3] * 8)],
    ]
    found = {item.task: item for item in instructions.score("test", items, references, told, 200, 0)}
    assert set(found) == {f"instructions_test{end}" for end in ("", "_short", "_medium", "_long")}
    whole = {metric.name: metric.estimate for metric in found["instructions_test"].metrics}
    np.testing.assert_allclose(found["instructions_test"].items["rougeL"], [50.0, 100.0, 0.0])
    assert whole["rougeL"].value == pytest.approx(50.0)
    assert whole["rougeL"].n == 3
    # seeds: (100 + 100 + 0) / 3 and (0 + 100 + 0) / 3; t(0.975, 1) = 12.7062
    by_seed = whole["rougeL_by_seed"]
    assert (by_seed.value, by_seed.n) == (pytest.approx(50.0), 2)
    half = 12.7062 * np.std([200 / 3, 100 / 3], ddof=1) / np.sqrt(2)
    assert by_seed.high - by_seed.value == pytest.approx(half, rel=1e-4)
    assert whole["exact_match"].value == pytest.approx(0.5)
    assert whole["repetition"].value == pytest.approx((0 + 0 + 0.5 * 4 / 5) / 3)
    assert found["instructions_test_long"].metrics[0].estimate.value == 0.0
    assert bootstrap.student(np.array([3.0])).low is None


def test_equal_questions_stay_on_one_side():
    sides = {instructions.side_of(question(i)) for i in range(40)}
    assert sides == {"dev", "test"}
    twin = Question("other/1", "other", [1, 7, 8], [9, 2])
    assert instructions.side_of(twin) == instructions.side_of(question(7))


def test_the_first_turn_is_the_question():
    ids, mask = np.array([1, 5, 6, 7, 2, 8, 9, 2]), np.array([0, 0, 0, 1, 1, 0, 1, 1])
    assert questions.parts(ids, mask) == ([1, 5, 6], [7, 2])
    assert questions.parts(ids[:5], mask[:5]) == ([1, 5, 6], [7, 2])


@pytest.mark.slow
def test_in_an_evaluation_and_in_the_report(tmp_path):
    path = project.make(tmp_path, {"stages": ["construct"], "evaluate": {"instructions": OWN}})

    def evaluate(stage, variant=None):
        plan = paths.plan_step(config.load(path), "evaluate", variant, stage)
        execute(STEPS["evaluate"], plan.settings, plan.inputs, plan.out)
        return plan.out

    with contextlib.chdir(tmp_path):
        project.prepare(path)
        out = evaluate("dense")
        scores = {(s["task"], s["metric"]): s for s in json.loads((out / "scores.json").read_text())}
        for side in instructions.SIDES:
            one = scores[f"instructions_{side}", "rougeL"]
            assert one["n"] == 3
            assert one["ci_low"] <= one["value"] <= one["ci_high"]
            assert scores[f"instructions_{side}", "rougeL_by_seed"]["value"] == pytest.approx(one["value"])
        written = [json.loads(line) for line in (out / instructions.ANSWERS).read_text().splitlines()]
        assert [len(item["answers"]) for item in written] == [2] * 6
        assert {item["side"] for item in written} == {"dev", "test"}
        made = manifest.read(out)
        assert made.metrics["rougeL_test"] == scores["instructions_test", "rougeL"]["value"]
        first = (out / "scores.json").read_bytes()
        assert (evaluate("dense") / "scores.json").read_bytes() == first, "the same seeds, the same answers"
        evaluate("construct", "activation")
        project.run(path, "report")
        page = (tmp_path / "results/report.html").read_text()
        assert "ROUGE-L, interval over seeds" in page
        assert "activation<br>construct" in page.split("Sampled answers to held-out instructions")[1]
        asked = config.load(path, {"evaluate": {"instructions": {"max_prompt": 2}}})
        plan = paths.plan_step(asked, "evaluate", None, "dense")
        with pytest.raises(
            InputError, match=r"evaluate\.instructions\.max_prompt: .* has no question of at most 2 tokens"
        ):
            execute(STEPS["evaluate"], plan.settings, plan.inputs, plan.out)
