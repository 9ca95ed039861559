"""No task may be asked for under two names, such as mmlu and mmlu_astronomy: its items would count twice, and the group's mean would lack it.

lm-eval's index of names says it before any dataset is loaded, also for names that another shard of the evaluation asks.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from moesaic.errors import InputError


def check(found: Mapping[str, set[str]]) -> None:
    """Args: found: name that was asked for -> its tasks. Raises InputError for a task of two names."""
    seen: dict[str, str] = {}
    for name, tasks in found.items():
        for task in sorted(tasks):
            if task in seen:
                raise InputError(
                    f"evaluate.tasks: {task} is part of {seen[task]} and of {name}; leave one of them out"
                )
            seen[task] = name


def members(index: Mapping[str, Any], names: Iterable[str]) -> dict[str, set[str]]:
    """Names that the index (a TaskManager's task_index) knows -> their tasks."""
    return {name: _leaves(index, name) for name in names if name in index}


def _leaves(index: Mapping[str, Any], name: str) -> set[str]:
    entry = index[name]
    if entry.kind.name == "TAG":
        return {task for task in entry.tags if task in index}
    if entry.kind.name == "GROUP":
        return _of_group(index, name, entry.cfg)
    return {name}


def _of_group(index: Mapping[str, Any], group: str, settings: Mapping[str, Any]) -> set[str]:
    """A group's list holds names, names with changes, and groups and tasks that are defined in it, which carry its name before theirs."""
    found: set[str] = set()
    parts = settings.get("task")
    for part in parts if isinstance(parts, list) else []:
        name = part if isinstance(part, str) else part.get("group") or part["task"]
        if name in index:
            found |= _leaves(index, name)
        elif isinstance(part, dict) and "group" in part:
            found |= _of_group(index, f"{group}::{name}", part)
        else:
            found.add(f"{group}::{name}")
    return found
