"""The model as its own critic: the texts it is asked with, and the score that is read out of what it writes (Timo, arXiv 2406.14192, section 3.3)."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from moesaic.errors import InputError

BUILT_IN = Path(__file__).with_name("rubric.yaml")
HIGHEST = 5.0
BEGINNING = "Score:"
"""What the critic's text is made to begin with where its scores are weighed instead of sampled."""
NUMBER = r"(\d+(?:\.\d+)?)(?!\d|\.\d|\s*[-\u2013]\s*\d)"
MARKS = r"[\s:=*_`\"'(\[]*"
NAMED = re.compile(
    rf"score(?:\s*\([^)]*\))?(?:\s+(?:out\s+of\s+5|is|of|would\s+be))*{MARKS}{NUMBER}", re.IGNORECASE
)
OUT_OF = re.compile(rf"(?<![\d.-]){NUMBER}\s*(?:/|out\s+of)\s*5(?!\d|\.\d)", re.IGNORECASE)
ALONE = re.compile(rf"{MARKS}{NUMBER}[\s*_`\"')\].]*")


def load(text: str, where: str) -> dict[str, str]:
    """The two texts of a rubric file.

    Raises:
        InputError: not YAML, a missing text, or a text without its places for question and answer.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"preference.rubric.template: {where}: not valid YAML ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(found, dict) or set(found) != {"right", "wrong"}:
        raise InputError(f"preference.rubric.template: {where}: needs exactly the keys right and wrong")
    for name, body in found.items():
        for place in ("{question}", "{answer}"):
            if place not in str(body):
                raise InputError(f"preference.rubric.template: {where}: {name} has no {place}")
    return {name: str(body) for name, body in found.items()}


def fill(template: str, question: str, answer: str) -> str:
    """The critic's prompt; braces in question or answer stay what they are."""
    given = {"{question}": question, "{answer}": answer}
    return re.sub(r"\{question\}|\{answer\}", lambda found: given[found[0]], template).rstrip("\n")


def parse(text: str) -> float | None:
    """The score in a critic's text, 0 to 5; None when there is none that can be told: no number, or one out of range.

    Looked for, in this order: the last "score ... N", the last "N/5" or "N out of 5", a text that is nothing but a number.
    """
    named, out_of = NAMED.findall(text), OUT_OF.findall(text)
    alone = ALONE.fullmatch(text)
    found = named[-1] if named else out_of[-1] if out_of else alone.group(1) if alone else None
    return float(found) if found is not None and float(found) <= HIGHEST else None


def endings(tokenizer: Any) -> tuple[list[int], list[list[int]]]:
    """Tokens of the beginning, and of each score 0 to 5 after it.

    Raises:
        InputError: the tokenizer joins the beginning with a score.
    """
    start = tokenizer(BEGINNING, add_special_tokens=False)["input_ids"]
    found = []
    for value in range(int(HIGHEST) + 1):
        whole = tokenizer(f"{BEGINNING} {value}", add_special_tokens=False)["input_ids"]
        if whole[: len(start)] != start or len(whole) == len(start):
            raise InputError(
                f'preference.rubric.read: this model\'s tokenizer makes one token of the end of "{BEGINNING} {value}"; use text'
            )
        found.append(whole[len(start) :])
    return start, found


def expected(logp_S: Sequence[float]) -> float:
    """Mean score 0 to 5 under probabilities proportional to exp(logp), nats (G-Eval, arXiv 2303.16634, section 2)."""
    top = max(logp_S)
    weights = [math.exp(value - top) for value in logp_S]
    return sum(score * weight for score, weight in enumerate(weights)) / sum(weights)
