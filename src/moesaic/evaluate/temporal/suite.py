"""The temporal suite of an evaluation: every task of the step's lm-eval folder, and its means by kind, zero-shot and few-shot."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moesaic.evaluate import bootstrap, harness
from moesaic.evaluate.harness import TaskScores
from moesaic.evaluate.kept import Identity
from moesaic.evaluate.temporal import lm_tasks
from moesaic.evaluate.temporal.lm_tasks import GROUPS, name_of
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest

log = logging.getLogger("moesaic.temporal")


def run(
    model: Any,
    tokenizer: Any,
    settings: dict[str, Any],
    source: Manifest,
    work: Path,
    seed: int,
    identity: Identity | None = None,
) -> list[TaskScores]:
    """Evaluate all tasks once for each of settings["temporal_shots"], and average them by kind.

    Short answers have as chance what the best constant answer gets. The means over tasks are named temporal_math_time,
    temporal_pure_time and temporal_out_of_domain (and _short), as the groups of lm-eval are; with so many shots, @5 is added to
    every name. Tasks with fewer examples than that are left out there.
    """
    manifest.verify(source, ["tasks/", "stats.json"])
    known = files.read_json(source.folder / "stats.json")["lm_eval"]
    scores: list[TaskScores] = []
    for shots, call in zip(settings["temporal_shots"], calls(settings, source), strict=True):
        left = sorted(set(known) - set(call.tasks))
        if left:
            log.warning(
                "temporal_shots: %d: left out, for want of as many examples: %s", shots, ", ".join(left)
            )
        found = call.run(model, tokenizer, settings, work, seed, identity)
        end = f"@{shots}" if shots else ""
        # Not multiple_choice: these have averages of their own, and are not part of mc/average.
        found = [
            replace(_with_chance(item, known[item.task]["chance"]), multiple_choice=False) for item in found
        ]
        scores += [replace(item, task=item.task + end) for item in found]
        scores += [
            replace(item, task=item.task + end) for item in means(found, known, settings["bootstrap"], seed)
        ]
    return scores


def calls(settings: dict[str, Any], source: Manifest) -> list[harness.Call]:
    """What the suite evaluates, one call for each number of examples: the tasks that have as many."""
    known = files.read_json(source.folder / "stats.json")["lm_eval"]
    folder = source.folder / "tasks"
    there = {name: lm_tasks.examples(folder, name) for name in sorted(known)}
    return [
        harness.Call(
            "temporal",
            [name for name, count in there.items() if count >= shots],
            folder,
            {"include_path": None, "shots": shots},
        )
        for shots in settings["temporal_shots"]
    ]


def _with_chance(item: TaskScores, chance: float) -> TaskScores:
    metrics = [replace(metric, chance=chance) if metric.chance is None else metric for metric in item.metrics]
    return replace(item, metrics=metrics)


def means(found: Sequence[TaskScores], known: dict[str, Any], resamples: int, seed: int) -> list[TaskScores]:
    """The mean accuracy over the tasks of each kind and form; items (questions, where the candidates of one
    are items) are resampled within their task."""
    out = []
    for group in GROUPS:
        for form in ("choice", "short"):
            members = [
                item
                for item in found
                if (known[item.task]["group"], known[item.task]["form"]) == (group, form)
            ]
            if not members:
                continue
            name = name_of(group.replace("-", "_"), form)
            strata = [bootstrap.stratum(item.items["acc"], item.units) for item in members]
            estimate = bootstrap.macro(strata, resamples, bootstrap.generator(seed, name), rate=True)
            chance = sum(
                metric.chance or 0.0 for item in members for metric in item.metrics if metric.name == "acc"
            ) / len(members)
            out.append(TaskScores(name, [harness.Metric("acc", estimate, chance)], {}, [], False))
    return out
