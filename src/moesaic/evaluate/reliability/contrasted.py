"""The hallucination sets once more with DoLa (evaluate/dola.py): the same items, as tasks of their own beside those without, and what is gained."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from moesaic.evaluate import bootstrap
from moesaic.evaluate.harness import Metric, TaskScores

END = "_dola"
"""What is added to a task's name."""


def facts(known: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Task with DoLa -> facts of the task without, and its name as `plain`. Args: known: `lm_eval` of stats.json."""
    return {
        name + END: item | {"plain": name} for name, item in known.items() if item["axis"] == "hallucination"
    }


def named(found: list[TaskScores]) -> list[TaskScores]:
    """The same scores under the names with DoLa."""
    return [replace(item, task=item.task + END) for item in found]


def gains(
    found: Mapping[str, TaskScores], known: Mapping[str, dict[str, Any]], resamples: int, seed: int
) -> list[TaskScores]:
    """With DoLa minus without, paired by item: of each task, and the mean over the sets of several choices (`reliability/dola_gain`)."""
    out = []
    by_set: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, item in known.items():
        if "plain" not in item:
            continue
        metric = "exact" if item["kind"] == "question" else "acc"
        pair = (found[name].items[metric], found[item["plain"]].items[metric])
        if metric == "acc":
            by_set.setdefault(item["set"], []).append(pair)
        out.append(_gain(f"{name}_gain", f"{metric}_gain", [pair], resamples, seed))
    if by_set:
        # A question in several forms is one unit.
        pairs = [
            (np.mean([one for one, _ in forms], axis=0), np.mean([other for _, other in forms], axis=0))
            for forms in by_set.values()
        ]
        out.append(_gain("reliability/dola_gain", "acc_gain", pairs, resamples, seed))
    return out


def _gain(
    name: str, metric: str, pairs: list[tuple[np.ndarray, np.ndarray]], resamples: int, seed: int
) -> TaskScores:
    with_it, without = ([(pair[i], np.ones(len(pair[i]))) for pair in pairs] for i in (0, 1))
    estimate = bootstrap.difference(with_it, without, resamples, bootstrap.generator(seed, name), rate=True)
    return TaskScores(name, [Metric(metric, estimate, None)], {}, [], False)
