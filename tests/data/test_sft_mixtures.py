"""Mixtures for fine-tuning: the published figures, bounds, duplicates, noise, resume."""

import json
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data import mixtures
from moesaic.data.mixtures import Observation, Probe
from moesaic.data.mixtures.gate_load import profile, squared_distances
from moesaic.data.mixtures.gate_load_robust import relative_gaps
from moesaic.data.mixtures.sentence_embedding import embed
from moesaic.errors import InputError
from moesaic.schema import Mixture

SETS = ["a", "b", "c", "d"]
PROBING = ["gate-load", "gate-load-robust", "sentence-embedding"]


def build(method, names=SETS, probe=None, **changes):
    options = Mixture(method=method, probe=probe or {}, **changes).model_dump(mode="json")
    return mixtures.build(options, dict.fromkeys(names, 100), {})


def hits(shares, rows=40, tokens=100, seed=0, layers=1, kind="gate"):
    """A probe of rows whose tokens choose experts with the given shares, on each row a little differently."""
    random = np.random.default_rng(seed)
    found = {}
    for name, share in shares.items():
        share = np.asarray(share, float) / np.sum(share)
        own = random.dirichlet(60 * share, size=(rows, layers))
        found[name] = random.multinomial(tokens, own).astype(float)
    return Probe(kind, found, seed)


def exact(vectors, seed=0):
    """A probe whose loads are exactly the given vectors: all rows alike."""
    return Probe("gate", {name: np.tile(v, (4, 1, 1)) for name, v in vectors.items()}, seed)


def ahead_by(gap, side=0.05):
    """Loads of four datasets over 8 experts of which `a` has a mean distance larger by `gap` than the others, among which all distances are `side`.

    Delta_a = 3 x / 4 and Delta_b = (x + 2 side) / 4 with x the distance of a to each other, so x = side + 2 gap.
    """
    x = side + 2 * gap
    triangle = np.array([[1, -1, 0, 0, 0, 0, 0, 0], [1, 1, -2, 0, 0, 0, 0, 0]], float)
    triangle /= np.linalg.norm(triangle, axis=1, keepdims=True)
    away = np.array([0, 0, 0, 1, 1, -1, -1, 0]) / 2
    radius = side / math.sqrt(3)
    corners = [
        radius * np.array([math.cos(t), math.sin(t)]) @ triangle for t in np.arange(3) * 2 * math.pi / 3
    ]
    found = dict(zip("bcd", (1 / 8 + corner for corner in corners), strict=True))
    found["a"] = 1 / 8 + away * math.sqrt(x**2 - radius**2)
    assert min(v.min() for v in found.values()) >= 0
    return exact({name: v[None, :] for name, v in found.items()})


PUBLISHED = {
    0.05: {0.005: (0.33, 0.39, 0.49), 0.01: (0.42, 0.54, 0.67), 0.02: (0.61, 0.77, 0.81), 0.04: (0.84, 0.89, 0.89)},
    0.2: {0.005: (0.29, 0.29, 0.29), 0.01: (0.33, 0.34, 0.34), 0.02: (0.42, 0.45, 0.45), 0.04: (0.59, 0.61, 0.61)},
    0.8: {0.005: (0.25, 0.25, 0.25), 0.01: (0.25, 0.25, 0.25), 0.02: (0.26, 0.26, 0.26), 0.04: (0.27, 0.27, 0.27)},
}  # fmt: skip
"""Weight of the dataset ahead after 10, 20 and very many updates, by smoothing c and gap; eta 10, four datasets, from uniform.

Cell by cell those of the constant-gap recursion w <- (1 - c) w e^(eta g) / (w e^(eta g) + 1 - w) + c / 4 (0.2549 for c = 0.8, g = 0.01 at every time)."""


@pytest.mark.parametrize("c", PUBLISHED)
@pytest.mark.parametrize("gap", [0.005, 0.01, 0.02, 0.04])
def test_published_update_gives_every_published_figure(c, gap):
    mixture, probe = build("gate-load", probe={"smoothing": c}), ahead_by(gap)
    found = []
    for updates in (10, 10, 980):
        for _ in range(updates):
            values = mixture.look(probe)
        found.append(round(mixture.weights["a"], 2))
    assert values["mixture/delta/a"] - values["mixture/delta/b"] == pytest.approx(gap, abs=1e-12)
    assert found == pytest.approx(PUBLISHED[c][gap], abs=1e-9)
    assert mixture.updates == 1000


def test_the_defaults_of_gate_load_are_the_published_setting():
    mixture = build("gate-load")
    assert (mixture.every, mixture.settings["weights"]) == (100, "uniform")
    wanted = {"rows": 80, "layers": "last", "tokens": "all", "step_size": 10.0, "smoothing": 0.05}
    assert {key: mixture.probe[key] for key in wanted} == wanted
    robust = build("gate-load-robust", probe={"rows": 7})
    assert (robust.probe["rows"], robust.probe["layers"], robust.probe["step_size"]) == (7, "all", 0.2)


def test_loads_and_distances_by_hand():
    rows = np.array([[[3.0, 1.0]], [[0.0, 4.0]]])  # two rows, one layer, two experts
    assert profile(rows, "gate").tolist() == [[3 / 8, 5 / 8]]
    assert profile(rows, "hidden").tolist() == [[1.5, 2.5]]
    assert profile(rows, "gate", np.array([[2.0, 0.0]])).tolist() == [[[0.75, 0.25]]]
    two = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])  # layers: distance sqrt(2), and 0
    assert squared_distances(two)[0, 1] == pytest.approx(1.0)
    probe = exact({"a": two[0][:1], "b": two[1][:1], "c": two[1][:1]})
    values = build("gate-load", names="abc").look(probe)
    assert values["mixture/distance/a/b"] == pytest.approx(math.sqrt(2))
    assert values["mixture/distance/b/c"] == 0.0
    assert values["mixture/delta/a"] == pytest.approx(2 * math.sqrt(2) / 3)
    assert values["mixture/load/a/expert_0"] == 1.0


APART = {"a": [8, 1, 1, 1], "b": [1, 8, 1, 1], "c": [1, 1, 8, 1]}


@pytest.mark.parametrize("method", ["gate-load", "gate-load-robust"])
def test_a_duplicate_dataset_loses_weight(method):
    mixture = build(method)
    for update in range(6):
        mixture.look(hits(APART | {"d": APART["a"]}, seed=update))
    weights = mixture.weights
    assert max(weights["a"], weights["d"]) < 0.25 < min(weights["b"], weights["c"])
    assert weights["a"] == pytest.approx(weights["d"], rel=0.1)


def test_sampling_noise_moves_gate_load_and_not_the_robust_one():
    """Four datasets that are one: there is nothing to learn; over 20 updates of 80 rows, 8 experts."""
    same = dict.fromkeys(SETS, np.ones(8))
    spread, still = [], 0
    for seed in range(4):
        paper, robust = build("gate-load"), build("gate-load-robust")
        for update in range(20):
            probe = hits(same, rows=80, seed=100 * seed + update)
            paper.look(probe)
            still += robust.look(probe)["mixture/significant"] == 0
        spread.append([max(m.weights.values()) - min(m.weights.values()) for m in (paper, robust)])
    paper, robust = np.mean(spread, axis=0)
    assert still == 4 * 20
    assert paper > 0.015
    assert robust == 0.0


def test_few_rows_do_not_make_a_dataset_remote():
    """d is a small sample of what a, b and c are; its noisier load must not count as distance."""
    rng = np.random.default_rng(0)
    plain, corrected = [], []
    for seed in range(20):
        probe = hits(dict.fromkeys(SETS, np.ones(8)), rows=200, seed=seed)
        probe.rows["d"] = probe.rows["d"][rng.permutation(200)[:10]]
        profiles = np.stack([profile(probe.rows[name], "gate") for name in SETS])
        plain.append(np.sqrt(squared_distances(profiles)).mean(axis=1))
        corrected.append(relative_gaps(probe, SETS, profiles, 50)[1])
    plain, corrected = np.mean(plain, axis=0), np.mean(corrected, axis=0)
    relative = plain / plain.mean() - 1
    assert relative[3] > 0.5
    assert abs(corrected[3]) < relative[3] / 3


def test_the_standard_error_is_that_of_repeated_probes():
    shares = APART | {"d": [1, 1, 2, 8]}
    gaps, errors = [], []
    for seed in range(40):
        probe = hits(shares, rows=50, seed=seed)
        profiles = np.stack([profile(probe.rows[name], "gate") for name in SETS])
        _, gap, error = relative_gaps(probe, SETS, profiles, 100)
        gaps.append(gap)
        errors.append(error)
    assert np.mean(errors, axis=0) == pytest.approx(np.std(gaps, axis=0), rel=0.35)


def test_a_small_real_difference_is_found():
    """d sends a twelfth more of its tokens to one expert: no single probe is sure of it, six of them are."""
    mixture = build("gate-load-robust")
    seen = []
    for update in range(8):
        shares = dict.fromkeys(SETS, np.ones(8)) | {"d": [1.7, 1, 1, 1, 1, 1, 1, 1]}
        seen.append(mixture.look(hits(shares, rows=256, seed=update))["mixture/significant"])
    assert seen[-1] >= 1
    assert mixture.weights["d"] > 0.27


def test_the_robust_gap_does_not_depend_on_the_number_of_experts():
    """Every expert cut into four: the published distance halves, the relative gap stays."""
    shares = APART | {"d": [4, 4, 1, 1]}
    deltas, gaps = [], []
    for times in (1, 4):
        cut = {name: np.repeat(share, times) for name, share in shares.items()}
        probe = hits(cut, rows=300, tokens=2000)
        values = build("gate-load-robust").look(probe)
        deltas.append(values["mixture/delta/c"])
        gaps.append(values["mixture/gap/c"])
    assert deltas[1] == pytest.approx(deltas[0] / 2, rel=0.05)
    assert gaps[1] == pytest.approx(gaps[0], rel=0.1)


shares = st.fixed_dictionaries({name: st.lists(st.floats(0.05, 5), min_size=4, max_size=4) for name in SETS})


@settings(max_examples=15, deadline=None)
@given(
    method=st.sampled_from(PROBING),
    seen=st.lists(shares, min_size=1, max_size=5),
    order=st.permutations(SETS),
)
def test_weights_stay_within_bounds_and_names_do_not_matter(method, seen, order):
    one, other = (build(method, floor=0.1, ceiling=0.5, probe={"step_size": 5.0}) for _ in range(2))
    renamed = dict(zip(SETS, order, strict=True))
    for seed, item in enumerate(seen):
        probe = hits(item, rows=6, seed=seed)
        one.look(probe)
        other.look(Probe("gate", {renamed[n]: rows for n, rows in probe.rows.items()}, seed))
        assert sum(one.weights.values()) == pytest.approx(1.0)
        assert all(math.isfinite(value) for value in one.weights.values())
        if method == "gate-load-robust":
            assert min(one.weights.values()) >= 0.1 - 1e-9
            assert max(one.weights.values()) <= 0.5 + 1e-9
        else:
            assert min(one.weights.values()) >= 0.05 / 4 * 0.999
    for name in SETS:
        assert other.weights[renamed[name]] == pytest.approx(one.weights[name], rel=1e-6)


@pytest.mark.parametrize("method", PROBING)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_resume_is_exact(method, after):
    probes = [hits(APART | {"d": [4, 4, 1, 1]}, seed=seed) for seed in range(5)]
    whole, begun, again = (build(method) for _ in range(3))
    for probe in probes:
        whole.look(probe)
    for probe in probes[:after]:
        begun.look(probe)
    again.load_state(json.loads(json.dumps(begun.state())))
    for probe in probes[after:]:
        again.look(probe)
    assert again.state() == whole.state()
    assert whole.weights != build(method).weights


def test_the_anchor_bounds_what_a_lasting_gap_does():
    """The fixed point w0 exp(eta r / pull): from a prior of 1:1:1:3, all rows alike, so every gap is certain."""
    prior = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 3.0}
    mixture = build("gate-load-robust", weights=prior, ceiling=0.9, floor=0.001)
    for _ in range(400):
        values = mixture.look(ahead_by(0.02))
    raw = {name: prior[name] * math.exp(0.2 * values[f"mixture/gap/{name}"] / 0.1) for name in SETS}
    expected = {name: value / sum(raw.values()) for name, value in raw.items()}
    assert mixture.weights == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", PROBING)
def test_fewer_than_three_datasets_are_warned_of(method, caplog):
    with caplog.at_level(logging.WARNING, "moesaic.mixture"):
        mixture = build(method, names=["a", "b"])
    assert f"{method} is neutral with 2 dataset(s) (a, b)" in caplog.text
    mixture.look(hits({"a": [5, 1], "b": [1, 5]}))
    assert mixture.weights == pytest.approx({"a": 0.5, "b": 0.5})
    caplog.clear()
    with caplog.at_level(logging.WARNING, "moesaic.mixture"):
        build(method, weights={"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0})
        assert "2 dataset(s)" in caplog.text
        caplog.clear()
        build(method)
    assert not caplog.text


@pytest.mark.parametrize("method", PROBING)
def test_a_dataset_that_was_switched_off_stays_off_and_is_not_probed(method):
    mixture = build(method, weights={"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0})
    assert mixture.names == ["a", "b", "c"]
    mixture.look(hits(APART))
    assert mixture.weights["d"] == 0.0
    assert sum(mixture.weights.values()) == pytest.approx(1.0)


def test_bad_probes_are_refused():
    broken = hits(APART | {"d": [1, 1, 1, 1]})
    broken.rows["b"][0] = np.nan
    for method in ("gate-load", "gate-load-robust"):
        with pytest.raises(InputError, match="probe of b is not finite"):
            build(method).look(broken)
    one = hits(APART | {"d": [1, 1, 1, 1]})
    one.rows["c"] = one.rows["c"][:1]
    with pytest.raises(InputError, match="c, which has one row"):
        build("gate-load-robust").look(one)
    with pytest.raises(InputError, match=r"mixture\.floor: 0\.3 for each of 4"):
        build("gate-load-robust", floor=0.3)


def test_texts_are_measured_once_and_what_shares_words_is_close():
    random = np.random.default_rng(1)
    words = {"a": (0, 50), "b": (0, 50), "c": (60, 110), "d": (120, 170)}
    rows = {name: [random.integers(low, high, 40) for _ in range(12)] for name, (low, high) in words.items()}
    found = embed(rows, 0)
    assert np.linalg.norm(found["a"], axis=-1) == pytest.approx(np.ones((12, 1)))
    mixture = build("sentence-embedding")
    assert mixture.wants() == "text"
    values = mixture.look(Probe("text", found, 0))
    assert values["mixture/distance/a/b"] < 0.6 * values["mixture/distance/a/c"]
    assert mixture.wants() is None
    mixture.look(None)
    assert mixture.weights["d"] > mixture.weights["a"]
    again = build("sentence-embedding")
    again.load_state(json.loads(json.dumps(mixture.state())))
    assert again.wants() is None


def test_ref_loss_follows_the_excess_loss():
    """MoE-SFT's RefLoss: one update by hand, eta 1, c 1e-4; the balance loss has no part in it and gaps may be negative."""
    mixture = build("ref-loss", reference={"a": 1.0, "b": 1.0, "c": 2.0, "d": 2.0})
    assert (mixture.settings["step_size"], mixture.settings["smoothing"]) == (1.0, 1e-4)
    mixture.observe(Observation({"a": 1.5, "b": 1.0, "c": 1.0, "d": 2.0}, {"b": 7.0}))
    raw = {"a": math.exp(0.5), "b": 1.0, "c": math.exp(-1.0), "d": 1.0}
    expected = {name: 0.9999 * value / sum(raw.values()) + 0.0001 / 4 for name, value in raw.items()}
    assert mixture.weights == pytest.approx(expected, rel=1e-9)
    # the baseline as shipped, with a reference of -100 for one dataset, is decided by its first update
    mixture = build("ref-loss", reference=dict.fromkeys(SETS, 1.0))
    mixture.observe(Observation({"a": 102.0, "b": 1.0, "c": 1.0, "d": 1.0}))
    assert mixture.weights["a"] == pytest.approx(0.99993, abs=1e-5)
