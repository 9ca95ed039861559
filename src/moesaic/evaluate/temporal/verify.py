"""Is an answer right? Letters of multiple choice, and plain numbers.

This is the minimal form: dates, clock times and durations are compared as text.
"""

import re

from moesaic.evaluate.temporal.item import Item

LETTERS = "ABCDEFGH"
STATED = re.compile(r"answer(?:\s+is|\s*:)+\s*(.+)", re.IGNORECASE)


def prompt(item: Item) -> str:
    """The question as a user's turn."""
    if not item.choices:
        return f"{item.question}\nEnd with: The answer is ..."
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return f"{item.question}\n{listed}\nEnd with: The answer is (letter)."


def verify(item: Item, text: str) -> bool:
    """True when the text states the gold answer. A text that states none is wrong."""
    stated = STATED.findall(text)
    last = stated[-1] if stated else text
    if item.choices:
        letters = re.findall(r"(?<![A-Za-z])\(?([A-H])\)?(?![A-Za-z])", last)
        return bool(letters) and letters[0] == item.answer.strip().upper()
    gold = _number(item.answer)
    if gold is not None:
        found = _number(last)
        return found is not None and found == gold
    return _plain(last) == _plain(item.answer)


def _number(text: str) -> float | None:
    """The only number of a text; None when there is none or more than one."""
    found = re.findall(r"[-+]?\d+(?:\.\d+)?", text)
    return float(found[0]) if len(found) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" .\n").split())
