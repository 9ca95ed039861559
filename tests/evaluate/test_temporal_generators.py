"""Generated questions about time: a second solver agrees on every one, nothing in the choices tells the answer, splits share nothing."""

import json
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import temporal_second
from temporal_second import say12

from moesaic.evaluate.temporal import values
from moesaic.evaluate.temporal.draft import Redraw, Rng, corners
from moesaic.evaluate.temporal.generators import GENERATORS, reading, relations
from moesaic.evaluate.temporal.generators.ordering import HISTORY, YEARLY
from moesaic.evaluate.temporal.make import contamination, draft, generate, normal, split_of
from moesaic.evaluate.temporal.tasks import GENERATED, TASKS
from moesaic.evaluate.temporal.verify import LETTERS, letter, short, verify

COUNTS = {"train": 30, "validation": 8, "test": 30}
FACTS = {
    "ordering_facts": HISTORY,
    "typical_time_comparison": YEARLY,
}
"""Answered from a table: solved here by sorting it."""
ITEMS = {task: generate(task, COUNTS, ["choice", "short"], 5) for task in GENERATED}


def answer_of(item):
    return item.choices[LETTERS.index(item.answer)] if item.choices else item.answer


def second(task, question):
    if task in FACTS:
        names = sorted((n for n in FACTS[task] if n in question), key=FACTS[task].get)
        return names[0 if re.search(r"\bfirst(?:| in the calendar year):", question) else -1]
    if task == "typical_time_facts":
        month, day = YEARLY[re.search(r"year is (.+)\? Give", question)[1]]
        return f"{temporal_second.calendar.month_name[month]} {day}"
    return getattr(temporal_second, task)(question)


def test_the_38_tasks_are_the_papers():
    kinds = Counter(task.kind for task in TASKS.values())
    assert kinds == {"math-time": 19, "pure-time": 19}
    assert set(GENERATED) == set(GENERATORS)
    groups = Counter((task.kind, task.file) for task in TASKS.values())
    assert groups == {
        ("math-time", "ambiguity_resolution"): 4, ("math-time", "arithmetic"): 9, ("math-time", "duration"): 2, ("math-time", "frequency"): 4,
        ("pure-time", "ambiguity_resolution"): 1, ("pure-time", "causality"): 2, ("pure-time", "duration"): 5, ("pure-time", "frequency"): 2,
        ("pure-time", "nli"): 1, ("pure-time", "ordering"): 2, ("pure-time", "relation"): 1, ("pure-time", "storytelling"): 1,
        ("pure-time", "typical_time"): 4,
    }  # fmt: skip


@pytest.mark.parametrize("task", GENERATED)
def test_a_second_solver_agrees_on_every_item(task):
    assert len(ITEMS[task]) > 20
    for item in ITEMS[task]:
        expected = second(task, item.question)
        assert expected == answer_of(item), item
        assert verify(item, item.answer)
        if item.choices:
            assert len(set(item.choices)) == len(item.choices) >= 3
            assert [i for i, choice in enumerate(item.choices) if choice == expected] == [
                LETTERS.index(item.answer)
            ]
            # One of the choices of a direct comparison is a sentence.
            kinds = {values.kind_of(choice) for choice in item.choices}
            assert len(kinds) < 2 or task == "duration_direct_comparison", item


@pytest.mark.parametrize("task", GENERATED)
def test_no_wrong_choice_has_the_right_value(task):
    """180 minutes beside 3 hours would be right as well."""
    for item in ITEMS[task]:
        found = [values.value_of(choice) or choice for choice in item.choices]
        assert len(set(found)) == len(found) or task == "duration_direct_comparison"


def test_same_seed_same_bytes_and_more_keeps_what_there_was():
    for task in ("date_computation", "temporal_nli", "typical_time_facts"):
        first, again, other = (
            generate(task, {"train": 9, "test": 5}, ["choice", "short"], seed) for seed in (1, 1, 2)
        )
        assert json.dumps([i.record() for i in first]) == json.dumps([i.record() for i in again])
        assert [i.question for i in first] != [i.question for i in other]
        more = {i.id: i for i in generate(task, {"train": 12, "test": 9}, ["choice", "short"], 1)}
        assert all(more[item.id] == item for item in first)


def test_no_seed_moves_a_test_problem_to_train():
    for task in GENERATED:
        train = generate(task, {"train": 40}, ["choice", "short"], 8)
        assert contamination(train, [item for item in ITEMS[task] if item.split != "train"]) == []


def test_no_problem_stands_on_two_sides_in_any_form_or_task():
    items = [item for rows in ITEMS.values() for item in rows]
    sides = {split: [item for item in items if item.split == split] for split in COUNTS}
    assert (
        contamination(sides["train"], sides["test"])
        == contamination(sides["train"], sides["validation"])
        == []
    )
    assert len({normal(item.question) for item in sides["test"]}) == len(sides["test"])
    # The same clock sum in another task, notation or wording is the same problem.
    made = [
        draft(task, 5, number)[0]
        for task in ("hour_adjustment_24h", "hour_adjustment_12h", "shift_short")
        for number in range(300)
    ]
    assert all(d.key.startswith("clock ") for d in made)
    assert {split_of(d.key) for d in made} == {"train", "validation", "test"}


def _nli_problem(question):
    """Which event is before which, and what is asked, without the order and the words in which it is told."""
    told, event, other = re.match(
        r"Premise: (.*) Hypothesis: The (.+) took place before the (.+?)\. ", question
    ).groups()
    facts = re.findall(r"The ([^.]+?) took place (before|after) the ([^.]+)\.", told)
    return frozenset((a, b) if word == "before" else (b, a) for a, word, b in facts), event, other


def _habits_problem(question):
    told, asked = re.match(r"\w+ (.*)\. How often does \w+ (.*)\?", question).groups()
    return frozenset(re.split(r", and |, | and ", told)), asked


@pytest.mark.parametrize(
    ("task", "problem", "begin"),
    [("temporal_nli", _nli_problem, "order"), ("frequency_reading", _habits_problem, "habits")],
)
def test_a_problem_has_one_key_however_it_is_told(task, problem, begin, monkeypatch):
    """Few words to draw from, so that the same facts come in another order; keys and problems go together one to one."""
    monkeypatch.setattr(relations, "EVENTS", relations.EVENTS[:4])
    monkeypatch.setattr(reading, "HABITS", dict(list(reading.HABITS.items())[:3]))
    monkeypatch.setattr(reading, "RHYTHMS", reading.RHYTHMS[:4])
    made = [draft(task, 0, number)[0] for number in range(600)]
    pairs = {(item.key, problem(item.question)) for item in made if item.key.startswith(begin)}
    questions = {item.question for item in made if item.key.startswith(begin)}
    assert len(questions) > 1.3 * len(pairs), "the same problem is told in several ways"
    assert len(pairs) == len({key for key, _ in pairs}) == len({facts for _, facts in pairs})


def test_contamination_sees_through_case_space_and_punctuation():
    (item,) = generate("year_shift", {"test": 1}, ["short"], 1)
    copy = type(item)(
        "x", item.task, item.kind, f"  {item.question.upper().replace('?', ' ?!')}", "1", (), "train"
    )
    assert contamination([copy], [item]) == [("x", item.id)]
    assert contamination([copy], []) == []


# ---------------------------------------------------------------- nothing in the choices tells the answer


@cache
def number_of(choice):
    value = values.value_of(choice)
    if value is None:
        return None
    return sum(float(part or 0) * scale for part, scale in zip(value, (1e9, 1e6, 1e3, 1), strict=False))


def tokens_shared(choices):
    """Of each choice: how many of its words and figures the other choices have too."""
    parts = [re.findall(r"\d+|[a-z]+", choice.lower()) for choice in choices]
    return [
        sum(token in other for token in own for j, other in enumerate(parts) if j != i)
        for i, own in enumerate(parts)
    ]


def extreme(scores, largest):
    return scores.index((max if largest else min)(scores))


def by_value(place):
    def solve(choices, rng):
        numbers = [number_of(choice) for choice in choices]
        if None in numbers:
            return int(rng.integers(len(choices)))
        return int(np.argsort(numbers)[place if place != "median" else (len(choices) - 1) // 2])

    return solve


SOLVERS = {
    **{f"always {letter}": (lambda choices, rng, i=i: i) for i, letter in enumerate("ABC")},
    "random": lambda choices, rng: int(rng.integers(len(choices))),
    "longest": lambda choices, rng: extreme([len(c) for c in choices], True),
    "shortest": lambda choices, rng: extreme([len(c) for c in choices], False),
    "smallest": by_value(0),
    "median": by_value("median"),
    "largest": by_value(-1),
    "most shared": lambda choices, rng: extreme(tokens_shared(choices), True),
    "least shared": lambda choices, rng: extreme(tokens_shared(choices), False),
}


@pytest.fixture(scope="module")
def many():
    return {task: generate(task, {"test": 200}, ["choice"], 3) for task in GENERATED}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_that_do_not_read_the_question_are_at_chance(name, many):
    """Over all tasks within 3 standard errors, and in no task beyond 4.5."""
    rng = np.random.default_rng(0)
    right, chance, total = 0, 0.0, 0
    for task, items in many.items():
        hits = sum(LETTERS[SOLVERS[name](item.choices, rng)] == item.answer for item in items)
        expected = sum(1 / len(item.choices) for item in items)
        p = expected / len(items)
        assert abs(hits - expected) <= 4.5 * (len(items) * p * (1 - p)) ** 0.5, (
            f"{task}: {hits} of {len(items)}, chance {expected:.0f}"
        )
        right, chance, total = right + hits, chance + expected, total + len(items)
    p = chance / total
    assert abs(right - chance) <= 3 * (total * p * (1 - p)) ** 0.5, f"{right} of {total}, chance {chance:.0f}"


def test_minutes_alone_do_not_pick_the_answer(many):
    """TRAM's distractors differ from the answer in the minutes in every item (1495 of 1495); here two of four have them."""
    for task in ("hour_adjustment_24h", "hour_adjustment_12h"):
        for item in many[task]:
            ends = [choice.split(":")[1][:2] for choice in item.choices]
            assert ends.count(answer_of(item).split(":")[1][:2]) == 2
            hours = [(choice.split(":")[0], choice[-2:]) for choice in item.choices]
            assert max(Counter(hours).values()) <= 2


def test_the_larger_number_is_not_the_longer_time(many):
    wins = total = 0
    for item in many["duration_direct_comparison"]:
        _, first, other = re.search(r"Which is (\w+): (.+?) or (.+?), or", item.question).groups()
        if answer_of(item) in (first, other):
            larger = max(first, other, key=lambda text: int(text.split()[0]))
            wins, total = wins + (answer_of(item) == larger), total + 1
    assert abs(wins - total / 2) <= 4 * (total / 4) ** 0.5


def literally(name, a, b, c, d):
    """Whether a relation, taken at its words, holds of the events from a to b and from c to d."""
    return {
        "before": b <= c, "after": d <= a, "immediately before": b == c, "immediately after": d == a,
        "overlaps the start of": a <= c < b < d, "overlaps the end of": c < a < d <= b,
        "begins together with but ends before": a == c and b < d, "begins together with but ends after": a == c and b > d,
        "happens during": c <= a and b <= d, "contains": a <= c and d <= b,
        "ends together with but begins after": b == d and a > c, "ends together with but begins before": b == d and a < c,
    }[name]  # fmt: skip


def test_only_one_choice_of_relation_is_true():
    """Also where the words are taken loosely; and of two pairs of inverses each holds the answer as often, whichever two they are."""
    seen = Counter()
    for number in range(3000):
        made, _ = draft("relation", 4, number)
        times = [int(text) for text in re.findall(r"\d+", made.key)]
        assert [name for name in (made.answer, *made.wrong) if literally(name, *times)] == [made.answer], made
        assert "Say the most exact one of: " in made.question
        seen[frozenset(made.wrong[1:]), frozenset((made.answer, made.wrong[0]))] += 1
    assert len(seen) == 20
    for pairs, count in seen.items():
        n = count + seen[pairs[::-1]]
        assert abs(count - n / 2) <= 4.5 * (n / 4) ** 0.5, (pairs, count, n)


def test_hypothesis_alone_tells_nothing(many):
    """By its words (more or less than, before), each label is as frequent as the others."""
    seen = {}
    for item in many["temporal_nli"]:
        hypothesis = re.search(r"Hypothesis: (.+?\.) Is", item.question)[1]
        word = re.search(r"more than|less than|before", hypothesis)[0]
        seen.setdefault(word, Counter())[answer_of(item)] += 1
    assert set(seen) == {"more than", "less than", "before"}
    for word, labels in seen.items():
        n = sum(labels.values())
        assert all(abs(count - n / 3) <= 4.5 * (n * 2 / 9) ** 0.5 for count in labels.values()), (
            word,
            labels,
        )


def test_corners_are_one_shape_whichever_is_right():
    shapes = set()
    for corner in range(4):
        rng = Rng(1)
        rng.corner = corner
        x = 100 + (0 if corner & 1 else 7) + (0 if corner & 2 else 20)
        shapes.add(tuple(sorted([str(x), *corners(rng, x, (7, 20), str)])))
    assert shapes == {("100", "107", "120", "127")}
    rng.corner = 0
    with pytest.raises(Redraw):
        corners(rng, 5, (7, 7), str)
    with pytest.raises(Redraw):
        corners(rng, 5, (7, 14), str, 7)


def test_the_second_solver_can_disagree():
    assert (
        temporal_second.hour_adjustment_12h("What time is it 1 hour 5 minutes after 11:58 PM?") == "1:03 AM"
    )
    assert temporal_second.week_identification("What is the ISO week number of January 1, 2021?") == "53"
    assert (
        temporal_second.shift_calendar(
            "What is October 25, 1917 of the Julian calendar in the Gregorian calendar?"
        )
        == "November 7, 1917"
    )
    assert say12(temporal_second.clock("00:30")) == "12:30 AM"


@pytest.mark.parametrize("task", GENERATED)
def test_the_verifier_tells_every_mistake_from_the_answer(task):
    """In both forms, by the text of each choice, in a sentence and with its letter."""
    for number in range(60):
        made, _ = draft(task, 9, number)
        assert short(made.answer, f"The answer is {made.answer}.")
        choices = [made.answer, *made.wrong]
        for i, text in enumerate(choices):
            assert (
                short(made.answer, text) == short(made.answer, f"I think the answer is {text}.") == (i == 0)
            ), (made, text)
            said = (
                text,
                f"The answer is {text}.",
                f"({LETTERS[i]}) {text}",
                f"Answer: {LETTERS[i]}",
                f"It must be {LETTERS[i]}. {text}",
            )
            assert [letter(form, choices) for form in said] == [LETTERS[i]] * len(said), (made, text)
            # The letter of one choice with the text of another is no answer.
            assert letter(f"({LETTERS[i - 1]}) {text}", choices) is None, (made, text)
