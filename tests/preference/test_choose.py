"""Pair selection on fixed scores, and where every question goes."""

import collections

import numpy as np
import pytest

from moesaic.evaluate.temporal.item import Item
from moesaic.preference import choose, rating
from moesaic.preference.choose import Candidate


def candidate(draw, right, ratings=(), logp=None, tokens=2, text=None):
    return Candidate(draw, [7] * tokens, text or f"t{draw}", True, right, list(ratings), logp)


def pick(mode, right, wrong, seed=0):
    found = choose.METHODS[mode](right, wrong, np.random.default_rng(seed))
    return found and (found[0].draw, found[1].draw)


def test_rubric_takes_the_best_of_each_side():
    right = [candidate(0, True, [1, 2, 3]), candidate(1, True, [4, 4, None]), candidate(2, True, [3, 3, 3])]
    wrong = [candidate(3, False, [0, 0, 0]), candidate(4, False, [5, 1, 0]), candidate(5, False, [1, 1, 1])]
    assert pick("rubric", right, wrong) == (1, 4)


def test_a_rating_of_zero_counts_and_an_unread_one_does_not():
    assert candidate(0, True, [0, 4]).rating == 2.0
    assert candidate(0, True, [None, 4]).rating == 4.0
    assert candidate(0, True, [None, None]).rating is None
    right = [candidate(0, True, [None]), candidate(1, True, [0.0])]
    assert pick("rubric", right, [candidate(2, False, [0.0])]) == (1, 2)
    assert pick("rubric", [right[0]], [candidate(2, False, [3.0])]) is None


def test_equal_ratings_are_drawn_and_not_the_first():
    right = [candidate(i, True, [3]) for i in range(3)]
    wrong = [candidate(3, False, [1])]
    drawn = collections.Counter(pick("rubric", right, wrong, seed)[0] for seed in range(300))
    assert set(drawn) == {0, 1, 2}
    assert min(drawn.values()) > 60
    assert pick("rubric", right, wrong, 5) == pick("rubric", right, wrong, 5)


def test_random_takes_every_pair_equally_often():
    right, wrong = [candidate(i, True) for i in range(2)], [candidate(i, False) for i in range(2, 5)]
    drawn = collections.Counter(pick("random", right, wrong, seed) for seed in range(1200))
    assert len(drawn) == 6
    assert min(drawn.values()) > 140


def test_verifier_takes_the_likeliest_per_token():
    right = [candidate(0, True, logp=-4.0, tokens=2), candidate(1, True, logp=-6.0, tokens=6)]
    wrong = [candidate(2, False, logp=-3.0, tokens=2), candidate(3, False, logp=-2.0, tokens=1)]
    assert pick("verifier", right, wrong) == (1, 2)


ITEMS = {
    name: Item(name, "order", "math-time" if name == "m" else "pure-time", "Which?", "B", ("x", "y"), "train")
    for name in ("p", "q", "r", "s", "m")
}


def answers(*texts):
    return [{"ids": [5, 2], "finished": not text.endswith("..."), "text": text} for text in texts]


RECORDS = [
    {"id": "p", "prompt": [4], "answers": answers("The answer is B", "The answer is A", "The answer is B")},
    {"id": "q", "prompt": [4], "answers": answers("The answer is A", "no idea", "The answer is B...")},
    {"id": "r", "prompt": [4], "answers": answers("The answer is B", "(B)", "The answer is (B).")},
    {"id": "s", "prompt": [4], "answers": answers("The answer is B", "The answer is A", "(A)")},
    {"id": "m", "prompt": [4], "answers": answers("The answer is B", "The answer is A", "(A)")},
]


def test_every_question_and_answer_is_counted_once():
    found = {record["id"]: rating.judged(ITEMS[record["id"]], record["answers"]) for record in RECORDS}
    assert [item.right for item in found["p"]] == [True, False], "an answer drawn twice stands once"
    assert not any(item.right for item in found["q"]), "an answer that was cut off is never right"
    for item in found["s"]:
        item.ratings = [None, None, 2.0] if item.right else [None] * 3
    counts = rating.stats(ITEMS, RECORDS, found, {"p": 1, "m": 1})
    pure = counts["pure-time"]
    assert pure == {
        "questions": 4, "answers": 12, "right": 6, "different": 11, "pairs": 1, "no_right": 1, "no_wrong": 1, "unrated": 1, "ratings": 9,
        "unparsable": 8,
    }  # fmt: skip
    assert counts["math-time"]["pairs"] == 1
    for one in counts.values():
        assert one["questions"] == one["pairs"] + one["no_right"] + one["no_wrong"] + one["unrated"]
    assert (
        "2 pairs of 5 questions (1 without a right answer, 1 without a wrong one, 1 unrated)"
        in rating.words(counts)
    )


@pytest.mark.parametrize("mode", choose.METHODS)
def test_every_mode_gives_a_right_and_a_wrong_one(mode):
    right, wrong = [candidate(0, True, [1], -1.0)], [candidate(1, False, [2], -2.0)]
    assert pick(mode, right, wrong) == (0, 1)
