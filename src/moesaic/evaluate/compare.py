"""Is one model better than another? Paired bootstrap on the same blocks and items, so that shared difficulty cancels.

items.parquet: one row per block or item: task, item, key (digest of the content), group (text, held-out, mc, shift, other, or the average
that the task is part of, such as reliability/style), cluster (tasks that count as one in their average: those of a group that was asked for, or the same items
in several forms), unit (what is resampled, numbered within the cluster), nats, bytes and tokens for text, one column per metric for tasks.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesaic.errors import InputError
from moesaic.evaluate import bootstrap
from moesaic.evaluate.reliability import calibration

GROUPS = {"text/average": "text", "text/held-out": "held-out", "mc/average": "mc"}
SCALED = ("rouge", "bleu", "brier", "tokens")
"""Beginnings of metrics whose items are no rates, even where all lie between 0 and 1."""
FIXED = ("task", "item", "key", "group", "cluster", "unit", "nats", "bytes", "tokens")


def paired(
    a: Path, b: Path, task: str, metric: str = "acc", resamples: int = 1000, seed: int = 0
) -> tuple[float, float | None, float | None, int]:
    """Score of `a` minus score of `b` with its 95 % interval.

    Args:
        a, b: the items.parquet of two evaluations. task: a task of it, text/{domain}, or an average (text/average, text/held-out,
            mc/average), which is resampled within its domains or tasks. metric: for tasks; text is compared in bits per byte.

    Returns:
        (difference, low, high, n); low and high are None when there is a single block or item.

    Raises:
        InputError: the files hold no such task or metric, or not the same blocks or items.
    """
    return _paired(read(a), read(b), (str(a), str(b)), task, metric, resamples, seed)


def _paired(
    a: pd.DataFrame,
    b: pd.DataFrame,
    names: tuple[str, str],
    task: str,
    metric: str,
    resamples: int,
    seed: int,
) -> tuple[float, float | None, float | None, int]:
    frames = [_rows(frame, task, name) for frame, name in zip((a, b), names, strict=True)]
    for column in ("task", "item", "key"):
        if list(frames[0][column]) != list(frames[1][column]):
            raise InputError(
                f"{names[0]} and {names[1]}: {task} was evaluated on different blocks or items; evaluate both with the same data and evaluate keys"
            )
    if metric == "ece":
        return _calibration(frames[0], frames[1], resamples, bootstrap.generator(seed, f"paired/{task}/ece"))
    first, second = (
        [_stratum(rows, metric, name) for _, rows in frame.groupby("cluster")]
        for name, frame in zip(names, frames, strict=True)
    )
    rng = bootstrap.generator(seed, f"paired/{task}/{metric}")
    rate = all(_is_rate(frame, metric) for frame in frames)
    found = bootstrap.difference(first, second, resamples, rng, rate)
    return found.value, found.low, found.high, found.n


def _calibration(
    a: pd.DataFrame, b: pd.DataFrame, resamples: int, rng: np.random.Generator
) -> tuple[float, float | None, float | None, int]:
    """Difference of the calibration errors, both models on the same draws."""
    values = [
        [np.asarray(frame[name], dtype=np.float64) for name in ("confidence", "acc")] for frame in (a, b)
    ]
    n = len(a)
    every = np.arange(n)[None]
    drawn = rng.integers(0, n, size=(resamples, n))
    point, samples = (
        calibration.binned_error(values[0][0][rows], values[0][1][rows])
        - calibration.binned_error(values[1][0][rows], values[1][1][rows])
        for rows in (every, drawn)
    )
    return (float(point[0]), *(bootstrap.interval(samples) if n > 1 else (None, None)), n)


def table(a: Path, b: Path, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Every task, metric and average that both evaluations have, as {task, metric, value, ci_low, ci_high, n} of `a` minus `b`.

    Raises:
        InputError: a task was evaluated on different blocks or items.
    """
    frames = (read(a), read(b))
    found = []
    for task, metric in _comparable(*frames):
        value, low, high, n = _paired(*frames, (str(a), str(b)), task, metric, resamples, seed)
        numbers = {"value": value, "ci_low": low, "ci_high": high}
        rounded = {key: None if item is None else round(item, 6) for key, item in numbers.items()}
        found.append({"task": task, "metric": metric} | rounded | {"n": n})
    return found


def _comparable(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Averages first, then tasks in their order; metrics that every item of both has."""
    extra = dict.fromkeys(name for name in a["group"] if name.startswith("reliability/"))
    others = set(b["task"])
    for task in [*GROUPS, *extra, *dict.fromkeys(a["task"])]:
        mine = [_of(frame, task) for frame in (a, b)]
        if (
            mine[0].empty
            or mine[1].empty
            or (task not in GROUPS and task not in extra and task not in others)
        ):
            continue
        if mine[0]["nats"].notna().all():
            yield task, "bits_per_byte"
            continue
        metrics = [
            name
            for name in mine[0].columns
            if name not in FIXED and all(name in frame and frame[name].notna().all() for frame in mine)
        ]
        average = task in GROUPS or task in extra
        for name in metrics:
            if not average or name in ("acc", "refusal"):
                yield task, name
        if not average and {"confidence", "acc"} <= set(metrics):
            yield task, "ece"


def read(path: Path) -> pd.DataFrame:
    """An items.parquet. Raises InputError naming it when it cannot be read."""
    try:
        frame = pd.read_parquet(path)
        # Older files have no units.
        return frame if "unit" in frame else frame.assign(unit=frame["item"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:150]}); run its evaluate step again"
        ) from error


def _of(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """Rows of a task, or of all tasks of an average."""
    if task in GROUPS or task.startswith("reliability/"):
        return frame[frame["group"] == GROUPS.get(task, task)]
    return frame[frame["task"] == task]


def _rows(frame: pd.DataFrame, task: str, path: str) -> pd.DataFrame:
    rows = _of(frame, task)
    if rows.empty:
        raise InputError(f"{path}: no task '{task}'; tasks: {', '.join(sorted(frame['task'].unique()))}")
    return rows.sort_values(["task", "item"])


def _is_rate(rows: pd.DataFrame, metric: str) -> bool:
    """Whether items say yes or no, or something between."""
    if rows["nats"].notna().any() or metric.startswith(SCALED):
        return False
    return bool(rows[metric].between(0, 1).all())


def _stratum(rows: Any, metric: str, path: str) -> bootstrap.Stratum:
    if rows["nats"].notna().all():
        return np.asarray(rows["nats"], dtype=np.float64) / math.log(2), np.asarray(
            rows["bytes"], dtype=np.float64
        )
    if metric not in rows or rows[metric].isna().any():
        raise InputError(f"{path}: task {rows['task'].iloc[0]} has no metric '{metric}' per item")
    # The same item in several forms is one unit, and so are the candidate answers of one question.
    found = rows.groupby("unit")[metric].agg(["sum", "count"])
    return np.asarray(found["sum"], dtype=np.float64), np.asarray(found["count"], dtype=np.float64)
