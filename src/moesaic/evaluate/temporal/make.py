"""Items of a task, and which side of the split a problem belongs to."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Literal

from moesaic.evaluate.temporal.draft import Draft, Redraw, Rng
from moesaic.evaluate.temporal.generators import GENERATORS
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.tasks import kind_of
from moesaic.evaluate.temporal.verify import LETTERS

Split = Literal["train", "validation", "test"]
Form = Literal["choice", "short"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}
"""Shares of all problems, not of the items that are made."""
IDLE = 3000
"""Draws in a row without a new item after which a task has no more problems."""
REDRAWS = 20_000


def split_of(key: str) -> Split:
    """The side that a problem belongs to: from its content alone, so that no seed, no count and no later run moves a test problem to train."""
    place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2.0**64
    if place < SHARES["test"]:
        return "test"
    return "validation" if place < SHARES["test"] + SHARES["validation"] else "train"


def normal(question: str) -> str:
    """A question as it is compared: lower case, words and numbers only."""
    return " ".join(re.findall(r"[a-z0-9]+", question.lower()))


def draft(task: str, seed: int, number: int) -> tuple[Draft, Rng]:
    """Problem `number` of a task, and the random numbers that go on after it."""
    rng = Rng(f"{seed}/{task}/{number}")
    rng.corner = rng.randrange(12)
    for _ in range(REDRAWS):
        try:
            return GENERATORS[task](rng), rng
        except Redraw:
            continue
    raise AssertionError(f"{task}: no valid problem for corner {rng.corner}")


def generate(task: str, counts: Mapping[str, int], forms: Sequence[Form], seed: int) -> list[Item]:
    """Items of one task: up to counts[split] for each form, in a fixed order; fewer where the task has no more problems.

    A problem is asked in one form only. Each split's items are the first of their kind in one endless sequence, so asking for more keeps
    what there was.
    """
    found: dict[tuple[Split, Form], list[Item]] = {(split, form): [] for split in SPLITS for form in forms}
    wanted = {key: counts.get(key[0], 0) for key in found}
    seen: set[str] = set()
    turns = dict.fromkeys(SPLITS, 0)
    idle = 0
    for number in count():
        if idle >= IDLE or all(len(found[key]) >= wanted[key] for key in found):
            break
        idle += 1
        made, rng = draft(task, seed, number)
        split = split_of(made.key)
        names = {f"key {made.key}", f"question {normal(made.question)}"}
        form = forms[turns[split] % len(forms)]
        place = found[split, form]
        if names & seen or len(place) >= wanted[split, form]:
            continue
        seen |= names
        turns[split] += 1
        idle = 0
        place.append(_item(made, rng, f"{task}-{split}-{form}-{len(place):05d}", task, split, form))
    return [item for split in SPLITS for form in forms for item in found[split, form]]


def _item(made: Draft, rng: Rng, name: str, task: str, split: Split, form: Form) -> Item:
    if form == "short":
        return Item(name, task, kind_of(task), made.question, made.answer, (), split)
    choices = [made.answer, *made.wrong]
    assert len(set(choices)) == len(choices), f"{name}: equal choices {choices}"
    rng.shuffle(choices)
    letter = LETTERS[choices.index(made.answer)]
    return Item(name, task, kind_of(task), made.question, letter, tuple(choices), split)


def drafts(task: str, split: Split, seed: int) -> Iterator[Draft]:
    """All problems of one side, endless (and with repeats), for data that is not items."""
    return (made for number in count() if split_of((made := draft(task, seed, number)[0]).key) == split)


def contamination(train: Sequence[Item], test: Sequence[Item]) -> list[tuple[str, str]]:
    """(id in train, id in test) of items with the same question, however it is spaced, cased or punctuated, and in whichever form it is asked."""
    known = {normal(item.question): item.id for item in train}
    return [(known[key], item.id) for item in test if (key := normal(item.question)) in known]
