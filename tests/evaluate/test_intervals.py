"""Coverage by simulation of the newer figures' 95 % intervals, and the exact bound where all items say the same.

The other intervals are in test_reliability_metrics.py.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from moesaic.data.questions import Question
from moesaic.evaluate import bootstrap, compare, instructions
from moesaic.evaluate import scores as written
from moesaic.evaluate.harness import TaskScores
from moesaic.evaluate.reliability import attacked, contrasted, moe, suite
from moesaic.evaluate.science import suite as science
from moesaic.evaluate.temporal import suite as temporal

RUNS = 800
FACTS = {"axis": "hallucination", "kind": "truth", "set": "truthfulqa"}


def covered(found, truth):
    """Share of simulated experiments (lists of name -> estimate) whose interval holds the truth, by name."""
    return {
        name: np.mean([one[name].low <= value <= one[name].high for one in found])
        for name, value in truth.items()
    }


def test_coverage_of_the_attacks():
    """120 sentences: 75 % are judged rightly, of these the attack turns 60 % after 40 queries on average and 20 % of the words."""

    def experiment(run):
        rng = np.random.default_rng([11, run])
        found = []
        for i in range(120):
            right = rng.random() < 0.75
            turned = right and rng.random() < 0.6
            found.append(
                {
                    "id": str(i), "clean": right, "attacked": right and not turned, "words": 20,
                    "queries": rng.poisson(40) if right else 1, "changed": rng.binomial(20, 0.2) if turned else 0,
                }
            )  # fmt: skip
        made = attacked.summary("attack/x", [0, 1] * 60, found, {"bootstrap": 300}, run)
        return {metric.name: metric.estimate for metric in made.metrics}

    truth = {"acc_clean": 0.75, "acc_attacked": 0.75 * 0.4, "attack_success": 0.6, "queries": 40, "changed_words": 0.2}  # fmt: skip
    shares = covered([experiment(run) for run in range(RUNS)], truth)
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def scores(name, metric, values):
    return TaskScores(name, [], {metric: values.astype(float)}, [], False)


def test_coverage_of_what_dola_gains():
    """150 questions in two forms of one difficulty, and open ones: with DoLa 55 and 48 % instead of 50 and 40 %, and 25 % instead of 20 %."""
    known = {
        "mc1": FACTS, "binary": FACTS, "nq": FACTS | {"kind": "question", "set": "nq"},
    }  # fmt: skip
    known |= contrasted.facts(known)

    def experiment(run):
        rng = np.random.default_rng([12, run])
        hard, found = rng.normal(size=150), {}
        for name, metric, before, after in (("mc1", "acc", 0.5, 0.55), ("binary", "acc", 0.4, 0.48), ("nq", "exact", 0.2, 0.25)):  # fmt: skip
            own = rng.normal(size=150)  # of the form
            for end, share in (("", before), (contrasted.END, after)):
                seen = (hard + own + rng.normal(0, 0.5, 150)) / 1.5
                found[name + end] = scores(name + end, metric, seen < quantile(share))
        return {item.task: item.metrics[0].estimate for item in contrasted.gains(found, known, 300, run)}

    truth = {"mc1_dola_gain": 0.05, "binary_dola_gain": 0.08, "nq_dola_gain": 0.05, "reliability/dola_gain": 0.065}  # fmt: skip
    shares = covered([experiment(run) for run in range(RUNS)], truth)
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def quantile(share):
    """Of a standard normal."""
    from scipy.stats import norm

    return norm.ppf(share)


def test_coverage_of_a_rise_without_an_expert():
    """Bits per byte more on the same 100 texts of unequal length: 0.03 on average."""

    def experiment(run):
        rng = np.random.default_rng([13, run])
        size = rng.integers(40, 250, 100).astype(float)
        rise = size * rng.normal(0.03, 0.1, 100)
        return {"rise": bootstrap.ratio(rise, size, 300, rng)}

    shares = covered([experiment(run) for run in range(RUNS)], {"rise": 0.03})
    assert 0.93 <= shares["rise"] <= 0.97


def test_coverage_of_the_worst_expert():
    """16 experts that are all alike: the worst one's rise is theirs on average; and 16 of which one is missed most."""

    def experiment(run):
        rng = np.random.default_rng([15, run])
        size = rng.integers(40, 250, 120).astype(float)
        rises_EN = size * rng.normal(0.03, 0.1, (16, 120))
        alike = moe.worst(rises_EN, size, 300, rng)
        rises_EN[3] += 0.1 * size
        return {"alike": alike, "one": moe.worst(rises_EN, size, 300, rng)}

    found = [experiment(run) for run in range(RUNS)]
    truth = {"alike": 0.03, "one": 0.13}
    for name, value in truth.items():
        values = [one[name].value for one in found]
        assert np.mean(values) == pytest.approx(value, abs=4 * np.std(values) / RUNS**0.5)
    shares = covered(found, truth)
    assert 0.93 <= shares["one"] <= 0.97, shares
    # Now and then both halves choose the same of 16 equal ones, which spreads the value more than the draws do.
    assert 0.88 <= shares["alike"] <= 0.97, shares


def test_the_worst_expert_by_hand():
    """Expert 0 is the worst of the even texts, 1 of the odd ones."""
    rises = np.array([[6.0, 1.0, 2.0, 3.0], [1.0, 8.0, 2.0, 4.0]])
    size = np.array([10.0, 20.0, 10.0, 20.0])
    found = moe.worst(rises, size, 100, np.random.default_rng(0))
    assert found.value == pytest.approx((4 / 40 + 3 / 20) / 2)
    assert found.n == 4
    one = moe.worst(rises[:, :1], size[:1], 100, np.random.default_rng(0))
    assert (one.value, one.low, one.high) == (0.6, None, None)


def test_the_drift_interval_holds_what_many_texts_show():
    """Loads that differ clearly: the divergence of 60 texts and its interval against that of the loads themselves plus the noise level.

    The figure is pushed up by noise (docs: chance beside it), so that this is the spread alone.
    """
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    values, halves = [], []
    for run in range(200):
        rng = np.random.default_rng([14, run])
        loads = [rng.multinomial(30, share, size=(60, 1)).astype(float) for share in (p, q)]
        estimate, _ = moe.drift(*loads, False, 200, rng)
        values.append(estimate.value)
        halves.append((estimate.high - estimate.low) / 2)
    assert np.mean(halves) == pytest.approx(1.96 * np.std(values), rel=0.15)
    assert np.mean(values) == pytest.approx(float(moe.divergence(p[None], q[None])[0]), rel=0.05)


@pytest.mark.parametrize("n", [5, 24, 100])
def test_none_of_n_and_all_of_n_have_the_exact_bound(n):
    for value in (0.0, 1.0):
        found = bootstrap.mean(np.full(n, value), 100, np.random.default_rng(0), rate=True)
        exact = binomtest(int(value * n), n).proportion_ci(method="exact")
        assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
        plain = bootstrap.mean(np.full(n, value), 100, np.random.default_rng(0))
        assert (plain.low, plain.high) == (value, value)
    some = np.arange(n) == 0
    rated, plain = (bootstrap.mean(some, 100, np.random.default_rng(0), rate) for rate in (True, False))
    assert rated == plain


def test_a_mean_of_rates_that_are_all_none():
    """The bound is that of the strata together where they are alike, and no less than that of one alone where they are not."""
    zeros = [(np.zeros(n), np.ones(n)) for n in (20, 20)]
    found = bootstrap.macro(zeros, 100, np.random.default_rng(0), rate=True)
    assert found.high == pytest.approx(binomtest(0, 40).proportion_ci(method="exact").high)
    # 0 of 10 and 0 of 1000: the first may be as much as 31 %, the mean half of it.
    apart = [(np.zeros(n), np.ones(n)) for n in (10, 1000)]
    found = bootstrap.macro(apart, 100, np.random.default_rng(0), rate=True)
    assert found.high >= binomtest(0, 10).proportion_ci(method="exact").high / 2
    mixed = [(np.zeros(20), np.ones(20)), (np.arange(20) < 5, np.ones(20))]
    rated, plain = (bootstrap.macro(mixed, 100, np.random.default_rng(0), rate) for rate in (True, False))
    assert rated == plain


def test_items_that_all_agree_are_no_proof_of_equality():
    """24 items on which two models say the same: either may still be better on up to 14 % of all."""
    rng = np.random.default_rng(0)
    ones = np.ones(24)
    bound = binomtest(0, 24).proportion_ci(method="exact").high
    for said in (np.zeros(24), ones, np.arange(24.0) < 9):
        same = bootstrap.difference([(said, ones)], [(said, ones)], 100, rng, rate=True)
        assert (same.value, same.low, same.high) == (0.0, pytest.approx(-bound), pytest.approx(bound))
    apart = bootstrap.difference([(ones, ones)], [(0 * ones, ones)], 100, rng, rate=True)
    # One unit that says otherwise may turn a gain into a loss.
    assert (apart.value, apart.low, apart.high) == (1.0, pytest.approx(1 - 2 * bound), 1.0)
    plain = bootstrap.difference([(ones, ones)], [(ones, ones)], 100, rng)
    assert (plain.low, plain.high) == (0.0, 0.0), "of bits per byte there is no such bound"
    # Several sets together say more than one.
    sets = [(np.zeros(24), ones), (ones, ones)]
    both = binomtest(0, 48).proportion_ci(method="exact").high
    mean = bootstrap.difference(sets, sets, 100, rng, rate=True)
    assert (mean.low, mean.high) == (pytest.approx(-both), pytest.approx(both))
    one = np.arange(24) == 3
    rated, plain = (
        bootstrap.difference([(one, ones)], [(0 * ones, ones)], 100, np.random.default_rng(0), rate)
        for rate in (True, False)
    )
    assert rated == plain


def test_sets_that_are_all_right_or_all_wrong_leave_a_drop_open():
    """Not paired: one side all right on 30 items, the other too."""
    right, wrong = np.ones(30), np.zeros(30)
    bound = binomtest(0, 60).proportion_ci(method="exact").high * 2
    alone = binomtest(0, 30).proportion_ci(method="exact").high
    none = suite.contrast([([right], [right])], 100, np.random.default_rng(0))
    assert (none.value, none.low, none.high) == (0.0, pytest.approx(-bound), pytest.approx(bound))
    assert alone < none.high < 1.1 * alone
    whole = suite.contrast([([right], [wrong])], 100, np.random.default_rng(0))
    assert (whole.value, whole.low, whole.high) == (1.0, pytest.approx(1 - bound), 1.0)
    known = {name: {"group": "g", "split": name, "chance": 0.25} for name in ("id", "range", "unit")}
    found = [TaskScores(name, [], {"acc": right}, [], False) for name in known]
    drop = science.means(found, known, 100, 0)[1].metrics[0].estimate
    assert drop.value == 0.0
    assert drop.low < -alone / 2
    assert drop.high > alone / 2


def test_differences_of_text_and_of_rouge_are_not_taken_for_rates():
    frame = pd.DataFrame(
        {"nats": [np.nan] * 3, "acc": [0.0, 1.0, 1.0], "rougeL": [0.0] * 3, "tokens": [1.0] * 3}
    )
    assert compare._is_rate(frame, "acc")
    assert not compare._is_rate(frame, "rougeL")
    assert not compare._is_rate(frame, "tokens")
    assert not compare._is_rate(frame.assign(nats=0.5), "bits_per_byte")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_means_of_suites_and_of_exact_match_have_the_exact_bound(value):
    """20 items in each of two tasks, all wrong or all right: as 40 of one task."""
    found = [
        TaskScores(name, [], {"acc": np.full(20, value)}, [f"{name}{i}" for i in range(20)], True)
        for name in "ab"
    ]
    known = {
        name: {"group": "math-time", "form": "choice", "split": split, "chance": 0.25}
        for name, split in (("a", "id"), ("b", "range"))
    }
    made = [
        science.means(found, known, 100, 0)[0].metrics[0].estimate,
        temporal.means(found, known, 100, 0)[0].metrics[0].estimate,
    ]
    exact = binomtest(int(40 * value), 40).proportion_ci(method="exact")
    for estimate in made:
        assert (estimate.low, estimate.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    (average,) = (entry for entry in written.task_scores(found, 100, 0) if entry["task"] == "mc/average")
    assert (average["ci_low"], average["ci_high"]) == (
        pytest.approx(exact.low, abs=1e-6), pytest.approx(exact.high, abs=1e-6)
    )  # fmt: skip

    told = [{"text": "yes" if value else "no", "ids": [4, 2], "finished": True}]
    asked = [Question(f"s/{i}", "s", [1, i], [5, 2]) for i in range(40)]
    whole = instructions.score("test", asked, ["yes"] * 40, [told] * 40, 100, 0)[0]
    metrics = {metric.name: metric.estimate for metric in whole.metrics}
    assert (metrics["exact_match"].low, metrics["exact_match"].high) == (
        pytest.approx(exact.low), pytest.approx(exact.high)
    )  # fmt: skip
    assert metrics["tokens"].low == metrics["tokens"].high == 2
