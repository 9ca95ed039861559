"""Mixtures: on the simplex, within bounds, blind to names, resumable; the published updates give the published figures."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data import mixtures
from moesaic.data.mixtures import Observation
from moesaic.data.mixtures.base import bounded
from moesaic.errors import InputError
from moesaic.schema import Mixture

DOMAINS = ["a", "b", "c", "d"]
losses = st.fixed_dictionaries({name: st.floats(0, 6) for name in DOMAINS})
dynamic_methods = st.sampled_from(["dynamic", "dynamic-paper"])


def build(method, reference=1.0, sizes=None, like=None, **changes):
    reference = dict.fromkeys(DOMAINS, reference) if isinstance(reference, float) else reference
    options = Mixture(method=method, reference=reference, **changes).model_dump(mode="json")
    return mixtures.build(options, sizes or dict.fromkeys(DOMAINS, 10), like or {})


@settings(max_examples=60, deadline=None)
@given(method=dynamic_methods, seen=st.lists(losses, min_size=1, max_size=30))
def test_weights_stay_on_the_simplex_and_within_bounds(method, seen):
    mixture = build(method, floor=0.05, ceiling=0.6)
    for item in seen:
        mixture.observe(Observation(item))
        assert sum(mixture.weights.values()) == pytest.approx(1.0)
        assert all(math.isfinite(value) and value >= 0 for value in mixture.weights.values())
        if method == "dynamic":
            assert min(mixture.weights.values()) >= 0.05 - 1e-9
            assert max(mixture.weights.values()) <= 0.6 + 1e-9
        else:
            assert min(mixture.weights.values()) >= 1e-4 / 4 * 0.999


@settings(max_examples=40, deadline=None)
@given(method=dynamic_methods, seen=st.lists(losses, min_size=1, max_size=10), order=st.permutations(DOMAINS))
def test_names_do_not_matter(method, seen, order):
    one, other = build(method), build(method)
    renamed = dict(zip(DOMAINS, order, strict=True))
    for item in seen:
        one.observe(Observation(item))
        other.observe(Observation({renamed[name]: value for name, value in item.items()}))
    for name in DOMAINS:
        assert other.weights[renamed[name]] == pytest.approx(one.weights[name], rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(method=dynamic_methods, first=st.lists(losses, max_size=8), second=st.lists(losses, max_size=8))
def test_resume_is_exact(method, first, second):
    whole, begun, again = build(method), build(method), build(method)
    for item in first + second:
        whole.observe(Observation(item))
    for item in first:
        begun.observe(Observation(item))
    again.load_state(json.loads(json.dumps(begun.state())))
    for item in second:
        again.observe(Observation(item))
    assert again.state() == whole.state()


@settings(max_examples=60, deadline=None)
@given(
    weights=st.dictionaries(st.sampled_from(DOMAINS), st.floats(1e-6, 1.0), min_size=4),
    floor=st.floats(0, 0.25),
    ceiling=st.floats(0.25, 1),
)
def test_bounding_keeps_order_and_what_needs_no_change(weights, floor, ceiling):
    found = bounded(weights, floor, ceiling)
    assert sum(found.values()) == pytest.approx(1.0)
    for one in DOMAINS:
        for other in DOMAINS:
            if weights[one] < weights[other]:
                assert found[one] <= found[other] + 1e-12
    assert bounded(found, floor - 1e-9, ceiling + 1e-9) == pytest.approx(found)


def constant(mixture, gap, updates):
    for _ in range(updates):
        mixture.observe(Observation({"a": 1.0 + gap, "b": 1.0, "c": 1.0, "d": 1.0}))
    return mixture.weights["a"]


def test_a_constant_gap_does_not_drive_one_domain_to_one():
    # the fixed point: odds of 1 against 1 times exp(0.05 / 0.1) for each other domain
    expected = math.exp(0.5) / (math.exp(0.5) + 3)
    assert constant(build("dynamic"), 0.05, 500) == pytest.approx(expected, rel=1e-6)
    assert constant(build("dynamic"), 4.0, 500) <= 0.8  # clipped, and under the ceiling
    assert constant(build("dynamic-paper", smoothing=0.0), 0.05, 500) > 0.999


def test_published_update_gives_the_published_figures():
    """docs/methods/mixtures.md: what LLaMA-MoE's update does with gaps that stay."""
    mixture = build("dynamic-paper", smoothing=0.0)
    share = constant(mixture, 0.05, 80)
    assert share / mixture.weights["b"] == pytest.approx(55, rel=0.01)
    # MoE-SFT's recursion, four data sets, one ahead by a constant gap, eta 10
    table = {
        (0.05, 0.005): (0.33, 0.39, 0.49), (0.05, 0.01): (0.42, 0.54, 0.67), (0.05, 0.02): (0.61, 0.77, 0.81), (0.05, 0.04): (0.84, 0.89, 0.89),
        (0.2, 0.01): (0.33, 0.34, 0.34), (0.8, 0.04): (0.27, 0.27, 0.27),
    }  # fmt: skip
    for (c, gap), expected in table.items():
        mixture = build("dynamic-paper", smoothing=c, step_size=10.0)
        found = [constant(mixture, gap, updates) for updates in (10, 10, 500)]
        assert found == pytest.approx(expected, abs=0.0051), (c, gap)
    # a reference of -100 for one data set, as shipped with MoE-SFT's baseline: the first update decides everything
    mixture = build("dynamic-paper", reference={"a": -100.0 + 101, "b": 1.0, "c": 1.0, "d": 1.0})
    mixture.observe(Observation({"a": 102.0, "b": 1.0, "c": 1.0, "d": 1.0}))
    assert mixture.weights["a"] == pytest.approx(0.99993, abs=1e-5)


def test_the_balance_loss_counts_in_the_paper_variant_only():
    seen = Observation(dict.fromkeys(DOMAINS, 2.0), {"a": 0.7})
    for method, moved in (("dynamic", False), ("dynamic-paper", True)):
        mixture = build(method)
        mixture.observe(seen)
        assert (mixture.weights["a"] > mixture.weights["b"] + 0.01) == moved


def test_temperature():
    sizes = {"a": 100, "b": 100, "c": 400, "d": 10000}
    found = build("temperature", sizes=sizes, weights="size", temperature=2.0).weights
    assert [round(found[name] / found["a"], 6) for name in DOMAINS] == [1.0, 1.0, 2.0, 10.0]
    assert build("temperature", sizes=sizes, weights="size", temperature=1.0).weights == pytest.approx(
        build("static", sizes=sizes, weights="size").weights
    )


def test_published_references_and_bad_settings():
    like = {"a": "books", "b": "c4", "c": "github", "d": "wikipedia"}
    assert build("dynamic", "llama-2-7b", like=like).reference["a"] == 1.925
    with pytest.raises(InputError, match=r"data\.domains\.a\.like: the reference 'llama-2-7b'"):
        build("dynamic", "llama-2-7b")
    with pytest.raises(InputError, match=r"mixture\.reference\.c"):
        build("dynamic", {"a": 1.0, "b": 1.0, "d": 1.0})
    with pytest.raises(InputError, match=r"mixture\.floor: 0\.3 for each of 4 domains"):
        build("dynamic", floor=0.3)
    with pytest.raises(InputError, match=r"mixture\.ceiling: 0\.2 for each of 4 domains"):
        build("dynamic", ceiling=0.2)
    with pytest.raises(InputError, match="loss of b is nan"):
        build("dynamic").observe(Observation(dict.fromkeys(DOMAINS, 1.0) | {"b": math.nan}))


@pytest.mark.parametrize("method", ["dynamic", "dynamic-paper"])
def test_domains_at_zero_stay_at_zero(method):
    mixture = build(method, weights={"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.0})
    mixture.observe(Observation(dict.fromkeys(DOMAINS, 3.0)))
    assert mixture.weights["d"] == 0.0
    assert mixture.weights["c"] > mixture.weights["a"]
