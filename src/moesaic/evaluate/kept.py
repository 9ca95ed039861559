"""The scores of a task, and the file that keeps them: its name is a digest of all that they depend on, so that a rerun finds what is finished.

A shard of an evaluation makes such files, and the evaluation takes them over (shards.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.config import digest
from moesaic.errors import InputError
from moesaic.evaluate import bootstrap
from moesaic.flow import files

QUESTION = "moesaic_question"
"""Field of a task's items that are candidate answers asked one by one: what those of one question share. They are resampled together."""
FORMAT = 5
"""Raise it when what is kept of a task changes, so that finished ones are asked again."""
SLOW_RESAMPLES = 100
"""Resamples for metrics that are no plain means (f1, bleu ...): their aggregation runs once per resample."""


@dataclass(frozen=True)
class Metric:
    """One metric of one task."""

    name: str
    estimate: bootstrap.Estimate
    chance: float | None
    """What guessing gives: the mean over items of 1 / number of choices; None where there is no such thing."""


@dataclass(frozen=True)
class TaskScores:
    """What one task (or group of tasks) gave."""

    task: str
    metrics: list[Metric]
    items: dict[str, np.ndarray]
    """Metric -> values of its items [N]; only for metrics that are means over items."""
    keys: list[str]
    """Digest of each item, so that two models are compared on the same items only."""
    multiple_choice: bool
    group: str = ""
    """Average that the items belong to, for paired comparisons; empty: mc or other."""
    cluster: str = ""
    """Tasks of one cluster ask the same items in several forms; empty: the task alone."""
    partial: dict[str, np.ndarray] = field(default_factory=dict)
    """Metric -> values [M], of means over some of the items."""
    asked: str = ""
    """The name that was asked for: the task's, or that of a group that it is part of; empty: the task's."""
    units: list[str] = field(default_factory=list)
    """Of each item what it is resampled with, see QUESTION; empty: each item for itself."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Of multiple choice: what was asked, what is right and what was chosen; see choices.of_task."""


@dataclass(frozen=True)
class Identity:
    """What kept scores are kept for: digests of the model with the tasks' files."""

    whole: str
    """With all files."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Task -> with those files only that are not another task's alone: a new task beside it changes nothing."""

    def of(self, task: str) -> str:
        """The digest for a task or group."""
        return self.own.get(task, self.whole)


def name_of(
    task: str, settings: Mapping[str, Any], seed: int, identity: str, chat: bool,
    dola: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Name of the file of one task.

    Args:
        settings: schema.Evaluate as a dict. identity: Identity.of the task. chat, dola: see harness.run.
    """
    # batch changes nothing but rounding, and the intervals of means are made anew (estimated)
    asked = {key: settings[key] for key in ("include_path", "items")}
    asked["slow"] = min(settings["bootstrap"], SLOW_RESAMPLES)
    asked["shots"] = shots(settings, task)
    if dola is not None:
        asked["dola"] = dict(dola)
    versions = {package: metadata.version(package) for package in ("lm_eval", "transformers", "torch")}
    key = digest(
        {
            "format": FORMAT,
            "identity": identity,
            "seed": seed,
            "chat": chat,
            "settings": asked,
            "versions": versions,
        }
    )
    return f"{task}-{key[:16]}.json"


def shots(settings: Mapping[str, Any], name: str) -> int:
    """Examples in the prompts of a task or group."""
    return int(settings["task_shots"].get(name, settings["shots"]))


def estimated(scores: TaskScores, resamples: int, seed: int) -> TaskScores:
    """With the intervals of all means, from so many resamples; the same whether they were just asked or kept."""

    def metric(one: Metric) -> Metric:
        values, units = scores.items.get(one.name), scores.units
        if values is None:
            values, units = scores.partial.get(one.name), []
        if values is None:
            return one
        key = one.name if "," in one.name else f"{one.name},none"
        rng = bootstrap.generator(seed, f"{scores.task}/{key}")
        rate = set(values.tolist()) <= {0, 1}
        return replace(
            one, estimate=bootstrap.macro([bootstrap.stratum(values, units)], resamples, rng, rate)
        )

    return replace(scores, metrics=[metric(one) for one in scores.metrics])


def write(path: Path, scores: Sequence[TaskScores]) -> None:
    """Keep what one name gave."""
    plain = [
        asdict(score)
        | {
            kind: {name: values.tolist() for name, values in getattr(score, kind).items()}
            for kind in ("items", "partial")
        }
        for score in scores
    ]
    files.write_json(path, plain)


def read(path: Path) -> list[TaskScores]:
    """What `write` wrote. Raises InputError when the file is damaged."""
    try:
        return [
            TaskScores(
                row["task"],
                [
                    Metric(item["name"], bootstrap.Estimate(**item["estimate"]), item["chance"])
                    for item in row["metrics"]
                ],
                _arrays(row["items"]),
                row["keys"],
                row["multiple_choice"],
                partial=_arrays(row["partial"]),
                units=row["units"],
                answers=row["answers"],
            )
            for row in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run the evaluation again") from error


def _arrays(plain: Mapping[str, list[float]]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values, dtype=np.float64) for name, values in plain.items()}
