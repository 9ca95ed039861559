"""What is read out of a critic's text, and what a rubric file must hold."""

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
