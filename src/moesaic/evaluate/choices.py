"""What a model answered to each multiple-choice question, kept so that people can read where two models differ."""

from collections.abc import Sequence
from typing import Any

import numpy as np

NAME = "choices.json"
MOST = 100
"""Questions of a task that are kept."""
LONGEST = 700
"""Characters of a question; of longer ones the end stays."""


def of_task(task: Any, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One {key, asked, choices, right, chosen} per question: `right` and `chosen` are places in `choices`.

    Args:
        task: lm-eval's. samples: what its evaluation logged, in order of the questions.

    Empty for tasks that are scored in another way than by the likeliest of several continuations of one text.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or getattr(task, "multiple_input", 0):
        return []
    out: dict[Any, dict[str, Any]] = {}
    for item in samples:
        asked = task.doc_to_text(item["doc"])
        choices = [str(choice) for choice in task.doc_to_choice(item["doc"])]
        right, scores = task.doc_to_target(item["doc"]), item["filtered_resps"][: len(choices)]
        if not isinstance(asked, str) or not isinstance(right, int) or not 0 <= right < len(choices):
            continue
        chosen = int(np.argmax([float(score[0]) for score in scores]))
        if "acc" not in item or bool(item["acc"]) != (chosen == right):
            return []  # the task has a measure of its own
        out[item["doc_id"]] = {
            "key": item["doc_hash"][:16], "asked": _end(asked), "choices": choices, "right": right, "chosen": chosen,
        }  # fmt: skip
    return list(out.values())[:MOST]


def _end(text: str) -> str:
    return text if len(text) <= LONGEST else "…" + text[-LONGEST:]
