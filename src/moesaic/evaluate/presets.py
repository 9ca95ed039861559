"""Published lists of tasks with their numbers of examples in the prompt, by name: `evaluate.preset`."""

from collections.abc import Mapping
from typing import Any

from moesaic.errors import InputError

PRESETS: dict[str, dict[str, int]] = {
    "llama-moe": {  # LLaMA-MoE, arXiv 2406.16554, section 4.1
        "sciq": 0,
        "piqa": 0,
        "winogrande": 0,
        "arc_easy": 0,
        "arc_challenge": 25,
        "hellaswag": 10,
        "logiqa": 0,
        "boolq": 32,
        "lambada_openai": 0,
        "nq_open": 32,
        "mmlu": 5,
    },
}
"""lm-eval's task -> examples."""


def expand(settings: Mapping[str, Any]) -> dict[str, Any]:
    """schema.Evaluate as a dict, with the preset's tasks before its own and their examples where the user names none.

    Raises:
        InputError: a number of examples for a task that is not asked for.
    """
    published = PRESETS[settings["preset"]] if settings["preset"] else {}
    tasks = [*published, *(name for name in settings["tasks"] if name not in published)]
    unknown = sorted(set(settings["task_shots"]) - set(tasks))
    if unknown:
        raise InputError(
            f"evaluate.task_shots: {unknown[0]} is no task of this evaluation; the tasks are {', '.join(tasks)}"
        )
    return {**settings, "tasks": tasks, "task_shots": {**published, **settings["task_shots"]}}
