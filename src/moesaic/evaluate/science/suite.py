"""The science suite of an evaluation: every task of the step's lm-eval folder, means over the splits, and what is lost out of distribution."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.evaluate import bootstrap, harness
from moesaic.evaluate.harness import Metric, TaskScores
from moesaic.evaluate.kept import Identity
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest


def run(
    model: Any,
    tokenizer: Any,
    settings: dict[str, Any],
    source: Manifest,
    work: Path,
    seed: int,
    identity: Identity | None = None,
) -> list[TaskScores]:
    """Evaluate all tasks with evaluate.shots, items, batch and bootstrap.

    Of the open questions, chance is what the best constant answer gets. `{group}` is the mean accuracy over the splits, `{group}_drop` that of
    the in-distribution split minus the mean of the others.
    """
    manifest.verify(source, ["tasks/", "stats.json"])
    known = files.read_json(source.folder / "stats.json")["lm_eval"]
    (call,) = calls(settings, source)
    found = call.run(model, tokenizer, settings, work, seed, identity)
    # Not multiple_choice: these have means of their own, and are not part of mc/average.
    found = [replace(_with_chance(item, known[item.task]["chance"]), multiple_choice=False) for item in found]
    return found + means(found, known, settings["bootstrap"], seed)


def calls(_settings: dict[str, Any], source: Manifest) -> list[harness.Call]:
    """What the suite evaluates."""
    known = files.read_json(source.folder / "stats.json")["lm_eval"]
    return [harness.Call("science", sorted(known), source.folder / "tasks", {"include_path": None})]


def _with_chance(item: TaskScores, chance: float) -> TaskScores:
    metrics = [replace(metric, chance=chance) if metric.name == "acc" else metric for metric in item.metrics]
    return replace(item, metrics=metrics)


def means(found: Sequence[TaskScores], known: dict[str, Any], resamples: int, seed: int) -> list[TaskScores]:
    """Mean over the splits, and in-distribution minus the others, of each group; items are resampled within their split."""
    out = []
    for group in dict.fromkeys(known[item.task]["group"] for item in found):
        members = {known[item.task]["split"]: item for item in found if known[item.task]["group"] == group}
        strata = {split: (item.items["acc"], item.items["acc"] * 0 + 1) for split, item in members.items()}
        chance = float(np.mean([known[item.task]["chance"] for item in members.values()]))
        mean = bootstrap.macro(list(strata.values()), resamples, bootstrap.generator(seed, group), rate=True)
        out.append(TaskScores(group, [Metric("acc", mean, chance)], {}, [], False))
        weights = {split: 1.0 if split == "id" else -1 / (len(strata) - 1) for split in strata}
        parts = [(weights[split], stratum) for split, stratum in strata.items()]
        drop = bootstrap.unpaired(parts, resamples, bootstrap.generator(seed, f"{group}_drop"))
        out.append(TaskScores(f"{group}_drop", [Metric("acc_drop", drop, None)], {}, [], False))
    return out
