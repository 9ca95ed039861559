"""The data stream: exact proportions, no repeats within an epoch, resumable from a few numbers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data import mixtures
from moesaic.data.mixtures.prior import PRESETS
from moesaic.data.mixtures.static import Static
from moesaic.data.sampler import Sampler
from moesaic.errors import InputError

SIZES = {"a": 10, "b": 7, "c": 50}


def sampler(seed=0, weights=None):
    return Sampler(Static({"weights": weights or {"a": 0.2, "b": 0.3, "c": 0.5}}, SIZES, {}), SIZES, seed)


def test_counts_follow_the_weights_and_epochs_do_not_repeat():
    samples = sampler().next(100)
    for name, weight in (("a", 20), ("b", 30), ("c", 50)):
        assert sum(s.domain == name for s in samples) == weight
    for name, size in SIZES.items():
        rows = [s.row for s in samples if s.domain == name][:size]
        assert sorted(set(rows)) == sorted(rows), "a row came twice within an epoch"
    assert [s.row for s in samples if s.domain == "a"][:10] != [s.row for s in samples if s.domain == "a"][
        10:
    ]


@settings(max_examples=50, deadline=None)
@given(first=st.integers(0, 60), second=st.integers(0, 60), seed=st.integers(0, 5))
def test_resume_equals_no_interruption(first, second, seed):
    whole = sampler(seed).next(first + second)
    begun = sampler(seed)
    head = begun.next(first)
    state = json.loads(json.dumps(begun.state()))
    again = sampler(seed)
    again.load_state(state)
    assert head + again.next(second) == whole


@given(st.dictionaries(st.sampled_from("abc"), st.floats(0.01, 10), min_size=3))
@settings(max_examples=50, deadline=None)
def test_never_more_than_one_off(weights):
    s = sampler(weights=weights)
    total = sum(weights.values())
    for n in range(1, 60):
        s.next(1)
        for name, weight in weights.items():
            assert abs(s.drawn[name] - n * weight / total) < 1 + 1e-9


def test_a_cap_on_epochs_passes_a_domain_over_until_all_have_reached_it():
    capped = Sampler(Static({"weights": "uniform"}, SIZES, {}), SIZES, 0, max_epochs=2)
    capped.next(120)
    assert capped.drawn == {"a": 20, "b": 14, "c": 86}
    assert capped.epochs()["a"] == 2.0
    capped.next(14)
    assert capped.drawn == {"a": 20, "b": 14, "c": 100}
    capped.next(30)  # nothing is left below the cap: the stream goes on all the same
    assert sum(capped.drawn.values()) == 164
    assert min(capped.drawn.values()) > 14


def test_seeds_differ():
    assert sampler(0).next(50) != sampler(1).next(50)


def test_presets_are_the_published_ones_and_renormalised():
    assert sum(PRESETS["llama"].values()) == pytest.approx(1.0)
    assert sum(PRESETS["sheared-llama"].values()) == pytest.approx(1.0)
    mix = mixtures.build(
        {"method": "static", "weights": "llama"},
        {"x": 1, "y": 1, "z": 1},
        {"x": "c4", "y": "books", "z": "books"},
    )
    assert mix.weights["x"] == pytest.approx(0.15 / 0.195)
    assert mix.weights["y"] == mix.weights["z"] == pytest.approx(0.0225 / 0.195)


@pytest.mark.parametrize(
    ("weights", "like", "message"),
    [
        ("llama", {"a": None, "b": "c4", "c": "c4"}, r"data\.domains\.a\.like"),
        ({"q": 1.0}, {}, r"mixture\.weights\.q"),
        ({"a": 0.0}, {}, "all weights are 0"),
    ],
)
def test_wrong_weights_are_named(weights, like, message):
    with pytest.raises(InputError, match=message):
        Static({"weights": weights}, SIZES, like)
