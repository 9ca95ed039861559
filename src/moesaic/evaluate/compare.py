"""Paired comparison of two models on the same items."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from moesaic.errors import InputError
from moesaic.evaluate import bootstrap
from moesaic.evaluate.bootstrap import Interval


def paired(a: Path, b: Path, task: str, metric: str, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean difference a - b of a metric over the items of a task that both items.parquet hold, with its 95 % interval.

    Raises:
        InputError: the two files hold different items of the task.
    """
    found = []
    for path in (a, b):
        table = pq.read_table(path, filters=[("task", "=", task), ("metric", "=", metric)]).sort_by("item")
        found.append((table.column("item").to_pylist(), np.asarray(table.column("value").to_pylist())))
    if found[0][0] != found[1][0] or not found[0][0]:
        raise InputError(f"{a} and {b}: not the same items of {task}; evaluate both with the same settings")
    return bootstrap.difference(found[0][1], found[1][1], resamples, seed)
