"""Is one model better than another? Paired bootstrap on the same blocks and items, so that shared difficulty cancels.

items.parquet: one row per block or item: task, item, key (digest of the content), group (text, held-out, mc, other), nats, bytes and
tokens for text, one column per metric for tasks.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesaic.errors import InputError
from moesaic.evaluate import bootstrap

GROUPS = {"text/average": "text", "text/held-out": "held-out", "mc/average": "mc"}


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
    frames = [_rows(path, task) for path in (a, b)]
    for column in ("task", "item", "key"):
        if list(frames[0][column]) != list(frames[1][column]):
            raise InputError(
                f"{a} and {b}: {task} was evaluated on different blocks or items; evaluate both with the same data and evaluate keys"
            )
    first, second = (
        [_stratum(rows, metric, path) for _, rows in frame.groupby("task")]
        for path, frame in ((a, frames[0]), (b, frames[1]))
    )
    found = bootstrap.difference(
        first, second, resamples, bootstrap.generator(seed, f"paired/{task}/{metric}")
    )
    return found.value, found.low, found.high, found.n


def _rows(path: Path, task: str) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:150]}); run its evaluate step again"
        ) from error
    rows = frame[frame["group"] == GROUPS[task]] if task in GROUPS else frame[frame["task"] == task]
    if rows.empty:
        raise InputError(f"{path}: no task '{task}'; tasks: {', '.join(sorted(frame['task'].unique()))}")
    return rows.sort_values(["task", "item"])


def _stratum(rows: Any, metric: str, path: Path) -> bootstrap.Stratum:
    if rows["nats"].notna().all():
        return np.asarray(rows["nats"], dtype=np.float64) / math.log(2), np.asarray(
            rows["bytes"], dtype=np.float64
        )
    if metric not in rows or rows[metric].isna().any():
        raise InputError(f"{path}: task {rows['task'].iloc[0]} has no metric '{metric}' per item")
    return np.asarray(rows[metric], dtype=np.float64), np.ones(len(rows))
