"""What is read out of a critic's text, and what a rubric file must hold."""

import math

import pytest

from moesaic.errors import InputError
from moesaic.preference import rubric


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is to the point.\nScore: 4", 4.0),
        ("score = 3.5", 3.5),
        ("**Score:** 2", 2.0),
        ("Score: **5**", 5.0),
        ("Score: 0", 0.0),  # read as missing by the published code
        ("Score (0-5): 3", 3.0),
        ("My score is 2 out of 5.", 2.0),
        ("The score would be 1", 1.0),
        ("First I thought Score: 1, then more. Score: 4.", 4.0),
        ("I would say 3/5 here.", 3.0),
        ("That makes 4 out of 5 points.", 4.0),
        (" 3 ", 3.0),
        ("**4**.", 4.0),
        ("Score: 4/5", 4.0),
        ("Score: 7", None),
        ("Score: 10", None),
        ("Score: 55", None),
        ("Score: 0-5", None),
        ("Score: 0\u20135", None),
        ("Score: -1", None),
        ("On 3 May it rained for 5 days.", None),
        ("He was born on 3/5 of 1990, Score: 2", 2.0),
        ("", None),
        ("A good answer.", None),
    ],
)
def test_scores(text, expected):
    assert rubric.parse(text) == expected


def test_the_built_in_rubric_is_whole_and_braces_stay():
    template = rubric.load(rubric.BUILT_IN.read_text(), "rubric.yaml")
    text = rubric.fill(template["right"], "Is {answer} a day?", "x {question} y")
    assert "Is {answer} a day?" in text
    assert "x {question} y" in text
    assert template["right"] != template["wrong"]
    assert rubric.parse(text) is None, "a critic that only repeats its task gives no score"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("right: '{question} {answer}'", "exactly the keys right and wrong"),
        ("right: '{question} {answer}'\nwrong: '{question}'", r"wrong has no \{answer\}"),
        ("right: [", "not valid YAML"),
    ],
)
def test_a_wrong_rubric_file_is_named(text, message):
    with pytest.raises(InputError, match=message):
        rubric.load(text, "mine.yaml")


def test_expected_score_is_the_mean_under_the_normalised_probabilities():
    assert rubric.expected([math.log(1 / 6)] * 6) == pytest.approx(2.5)
    assert rubric.expected([-1000.0, -1000.0, -1000.0, -1000.0, -1000.0, -3.0]) == pytest.approx(5.0)
    logs = [math.log(p) if p else -math.inf for p in (0.01, 0.02, 0.0, 0.03, 0.1, 0.04)]
    assert rubric.expected(logs) == pytest.approx((0.02 + 0.09 + 0.4 + 0.2) / 0.2)


def test_a_tokenizer_that_joins_the_score_to_what_is_before_is_refused():
    def apart(text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}

    start, found = rubric.endings(apart)
    assert start == [ord(letter) for letter in "Score:"]
    assert found == [[ord(" "), ord(str(value))] for value in range(6)]

    def joined(text, add_special_tokens):
        return {"input_ids": [hash(word) for word in text.split(":")]} if " " in text else {"input_ids": [7]}

    with pytest.raises(InputError, match=r"preference\.rubric\.read"):
        rubric.endings(joined)


def test_places_may_stand_in_any_order():
    assert (
        rubric.fill("A: {answer}\nQ: {question}\n", "why {answer}?", "so {question}")
        == "A: so {question}\nQ: why {answer}?"
    )
