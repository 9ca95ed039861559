"""The maths conversations: right, in the form that a chat source reads, and never a test problem."""

import random
import re
from itertools import islice

import pytest

from moesaic.data import sources
from moesaic.data.conversations import FORMATS
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.make import contamination, generate
from moesaic.evaluate.temporal.maths import MATH_TIME, PROBLEMS, records
from moesaic.schema import ChatSource, Maths

RECORDS = list(records(1500, 0.6, 4))


def test_every_step_is_right_and_leads_to_the_answer():
    """Each `left = right` is computed; the last number is the answer."""
    checked = 0
    for record in RECORDS:
        *steps, last = record["output"].splitlines()
        assert last.startswith("The answer is ")
        for step in steps:
            step = re.sub(r", remainder \d+| days of work", "", step)
            if "remainder" in record["output"] and "/" in step:
                left, right = step.split(" = ")
                assert eval(left.replace("/", "//")) == int(right)
                continue
            left, *rights = re.sub(r"(\d+)x", r"\1", step).replace("x = ", "").split(" = ")
            if re.match(r"\d+x", step):
                left, rights = rights[0], rights[1:]
            assert all(eval(left) == pytest.approx(eval(right)) for right in rights), step
            checked += 1
        if steps:
            assert last == f"The answer is {steps[-1].split(' ')[-1]}."
    assert checked > 1000


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_answer_is_the_questions(name):
    """Solved again from the question's numbers alone, by search."""
    rng = random.Random(5)
    for _ in range(40):
        question, _, answer = PROBLEMS[name](rng)
        n = [int(x) for x in re.findall(r"-?\d+", question.replace(" - ", " "))]
        value = int(answer)
        right = {
            "shopping": lambda n, value: sum([n[1]] * n[0]) + sum([n[3]] * n[2]) == value,
            "discount": lambda n, value: 100 * value == n[0] * (100 - n[1]),
            "workers": lambda n, value: n[0] * n[1] == n[2] * value,
            "equation": lambda n, value: n[0] * value + n[1] == n[2],
            "mean": lambda n, value: 4 * value == sum(n),
            "boxes": lambda n, value: value in range(n[1]) and (n[0] - value) % n[1] == 0,
            "product": lambda n, value: sum([n[0]] * n[1]) == value,
            "ages": lambda n, value: value + (value + n[0]) == n[1],
        }[name]
        assert right(n, value), (question, answer)


def test_no_conversation_is_a_test_or_validation_problem_of_any_seed():
    asked = [
        Item(str(i), "", "math-time", re.split(r"\n", r["instruction"])[0].removeprefix("Question: "), "", ())
        for i, r in enumerate(RECORDS)
    ]
    assert sum(r["instruction"].startswith("Question: ") for r in RECORDS) > 700
    for seed in (4, 11):
        held = [
            item
            for task in MATH_TIME
            for item in generate(task, {"validation": 20, "test": 60}, ["choice", "short"], seed)
        ]
        assert contamination(asked, held) == []
        train = [
            item for task in MATH_TIME for item in generate(task, {"train": 200}, ["choice", "short"], seed)
        ]
        # The check would see them: some of the training problems are among the conversations.
        assert seed != 4 or contamination(asked, train)


def test_a_chat_source_reads_them():
    source = ChatSource(name="maths", at=Maths(kind="maths", conversations=40, time=0.5))
    found = [FORMATS["alpaca"](record.fields) for record in sources.located(source.at)]
    assert len(found) == 40
    assert all(talk and [m["role"] for m in talk] == ["user", "assistant"] for talk in found)
    assert len({talk[0]["content"] for talk in found}) == 40
    assert list(records(40, 0.5, 0)) == list(records(40, 0.5, 0)) != list(records(40, 0.5, 1))
    assert list(islice(records(80, 0.5, 0), 40)) == list(records(40, 0.5, 0))
    assert not any(r["instruction"].startswith("Question: ") for r in records(40, 0.0, 0))
