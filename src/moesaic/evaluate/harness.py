"""lm-evaluation-harness through its Python API, around a model that is already loaded; intervals are our own bootstrap over items.

`lm_eval.evaluate` is called with loaded tasks rather than `simple_evaluate`, which would also collect git and environment facts and
hide the task objects, whose aggregations the intervals need.
"""

import contextlib
import logging
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic.errors import InputError
from moesaic.evaluate import bootstrap

log = logging.getLogger("moesaic.harness")

CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes")
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


def run(
    model: Any, tokenizer: Any, settings: dict[str, Any], folder: Path, work: Path, seed: int
) -> list[TaskScores]:
    """Evaluate settings["tasks"] (schema.Evaluate as a dict), in order of name.

    Args:
        folder: of task files, one folder per task (the `tasks` step's) or all in one. work: where temporary files may go.

    Raises:
        InputError: a task that cannot be loaded (no network, missing files, unknown) or that would run generated code.
    """
    names = settings["tasks"]
    if not names:
        return []
    import lm_eval
    from lm_eval.tasks import TaskManager

    from moesaic.evaluate.prefix import SharedPrefixLM

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    local = all(
        (folder / name / f"{name}.yaml").is_file() or (folder / f"{name}.yaml").is_file() for name in names
    )
    with _quiet(work if local else None):
        paths = [str(folder), *([settings["include_path"]] if settings["include_path"] else [])]
        manager = TaskManager(include_path=paths, include_defaults=not local)
        tasks = _load(manager, names)
        _set_shots(tasks["tasks"], settings["shots"], seed)
        lm = SharedPrefixLM(model, tokenizer, settings["batch"])
        results = lm_eval.evaluate(lm, tasks, limit=settings["items"], bootstrap_iters=0, log_samples=True)
    assert results is not None, "lm_eval.evaluate gives results on rank 0"
    found = [
        _task(name, task, results, settings["bootstrap"], seed)
        for name, task in sorted(tasks["tasks"].items())
    ]
    for group in sorted(results.get("groups", {})):
        metrics = [
            Metric(
                _metric_name(key),
                bootstrap.Estimate(
                    float(value), None, None, int(results["groups"][group].get("sample_len", 0))
                ),
                None,
            )
            for key, value in sorted(results["groups"][group].items())
            if "," in key and "_stderr," not in key and isinstance(value, int | float)
        ]
        found.append(TaskScores(group, metrics, {}, [], False))
    return found


def _load(manager: Any, names: Sequence[str]) -> Any:
    for name in names:
        if name not in manager.all_tasks:
            raise InputError(
                f"evaluate.tasks: no task '{name}' among the tasks step's folders, evaluate.include_path and lm-eval's own"
            )
    try:
        return manager.load(list(names))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"evaluate.tasks: {', '.join(names)} cannot be loaded ({type(error).__name__}: {reason}); data on a hub needs network or a filled "
            "cache, local data needs the tasks step's files"
        ) from error


def _set_shots(tasks: dict[str, Any], shots: int, seed: int) -> None:
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"evaluate.tasks: {name} runs code that the model writes; run it with lm-eval yourself, in a sandbox"
            )
        if own == 0 and shots:
            log.warning("%s is defined with 0 shots; evaluate.shots = %d is not used for it", name, shots)
            continue
        if own not in (None, shots):
            log.warning("%s is defined with %d shots; evaluate.shots = %d replaces them", name, own, shots)
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=seed)


def _task(name: str, task: Any, results: Any, resamples: int, seed: int) -> TaskScores:
    samples = sorted(results["samples"][name], key=lambda item: item["doc_id"])
    choices = task.OUTPUT_TYPE == "multiple_choice"
    chance = (
        float(np.mean([1 / len(task.doc_to_choice(item["doc"])) for item in samples])) if choices else None
    )
    metrics, items = [], {}
    for key, value in sorted(results["results"][name].items()):
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        rng = bootstrap.generator(seed, f"{name}/{key}")
        values = [item[metric] for item in samples if item["filter"] == kind and metric in item]
        label = _metric_name(key)
        if all(isinstance(item, int | float) for item in values) and math.isclose(
            float(np.mean(values)), value, rel_tol=1e-9, abs_tol=1e-12
        ):
            estimate = bootstrap.mean(np.asarray(values, dtype=np.float64), resamples, rng)
            if len(values) == len({item["doc_id"] for item in samples}):
                items[label] = np.asarray(values, dtype=np.float64)
        else:
            estimate = _resampled(
                task.aggregation().get(metric), values, float(value), min(resamples, SLOW_RESAMPLES), rng
            )
        metrics.append(Metric(label, estimate, chance if metric in CHOICE_METRICS else None))
    keys = list({item["doc_id"]: item["doc_hash"][:16] for item in samples}.values())
    return TaskScores(name, metrics, items, keys, choices)


def _resampled(
    aggregate: Any, values: list[Any], value: float, resamples: int, rng: np.random.Generator
) -> bootstrap.Estimate:
    """Interval of any aggregation (f1, bleu, perplexity ...) by running it on resampled items; None where it is not defined on them."""
    n = len(values)
    if aggregate is None or n < 2:
        return bootstrap.Estimate(value, None, None, n)
    samples = [float(aggregate([values[i] for i in row])) for row in rng.integers(0, n, size=(resamples, n))]
    if not np.isfinite(samples).all():
        return bootstrap.Estimate(value, None, None, n)
    return bootstrap.Estimate(value, *bootstrap.interval(np.asarray(samples)), n)


def _metric_name(key: str) -> str:
    """lm-eval writes 'metric,filter'; the filter is left out where there is none."""
    metric, _, kind = key.partition(",")
    return metric if kind == "none" else key


@contextlib.contextmanager
def _quiet(work: Path | None) -> Iterator[None]:
    """No progress bars, no chatter; with `work`: no network, and the datasets cache in a temporary folder there."""
    import datasets
    import lm_eval.api.task

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, not datasets.are_progress_bars_disabled()
    changes: list[tuple[Any, str, Any]] = [(lm_eval.api.task, "tqdm", lambda items, **_: items)]
    with contextlib.ExitStack() as stack:
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            cache = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="datasets-", dir=work, ignore_cleanup_errors=True)
                )
            )
            changes += [
                (datasets.config, "HF_DATASETS_OFFLINE", True),
                (datasets.config, "HF_DATASETS_CACHE", cache),
            ]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        try:
            logger.setLevel(logging.ERROR)
            datasets.disable_progress_bars()
            for owner, name, value in changes:
                setattr(owner, name, value)
            yield
        finally:
            logger.setLevel(level)
            if bars:
                datasets.enable_progress_bars()
            for owner, name, value in before:
                setattr(owner, name, value)
