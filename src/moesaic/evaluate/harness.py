"""lm-evaluation-harness through its Python API, around a model that is already loaded; intervals are our own bootstrap over items.

`lm_eval.evaluate` is called with loaded tasks rather than `simple_evaluate`, which would also collect git and environment facts and
hide the task objects, whose aggregations the intervals need. It is called once per name, and what a name gave is kept: a killed
evaluation goes on with the first task that is not finished.
"""

import contextlib
import logging
import math
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic.errors import InputError
from moesaic.evaluate import apart, bootstrap, choices, kept
from moesaic.evaluate.kept import Identity, Metric, TaskScores

log = logging.getLogger("moesaic.harness")

CACHE = "datasets-"
"""Beginning of the temporary folder's name where the datasets library keeps what it reads."""
CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes")


@dataclass(frozen=True)
class Call:
    """What `run` is asked for, once per suite and form: everything that the scores depend on besides the model."""

    source: str
    """The input of the evaluation that holds the task files: tasks, temporal, science or reliability."""
    tasks: list[str]
    folder: Path
    """Of the task files."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Keys of schema.Evaluate that are not as configured."""
    chat: bool = False
    dola: dict[str, Any] | None = None
    elsewhere: tuple[str, ...] = ()
    """Names of the same call that other shards ask."""

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """schema.Evaluate as a dict, for these tasks."""
        return {**settings, **self.changes, "tasks": self.tasks}

    def run(
        self, model: Any, tokenizer: Any, settings: Mapping[str, Any], work: Path, seed: int, identity: Identity | None,
    ) -> list[TaskScores]:  # fmt: skip
        """See `run` below."""
        return run(
            model, tokenizer, self.settings(settings), self.folder, work, seed, identity, self.chat, self.dola, self.elsewhere,
        )  # fmt: skip


def run(
    model: Any,
    tokenizer: Any,
    settings: dict[str, Any],
    folder: Path,
    work: Path,
    seed: int,
    identity: Identity | None = None,
    chat: bool = False,
    dola: Mapping[str, Any] | None = None,
    elsewhere: Sequence[str] = (),
) -> list[TaskScores]:
    """Evaluate settings["tasks"] (schema.Evaluate as a dict), in order of name; groups come last.

    Args:
        folder: of task files, one folder per task (the `tasks` step's) or all in one. work: where temporary and kept files may go.
        identity: of the model and of the tasks' data. With it the scores of each finished task are kept in work/tasks and read
            from there when the same is asked again; None: nothing is kept.
        chat: put each prompt into the tokenizer's chat template as a user's turn.
        dola: schema.Dola as a dict: score and generate with the contrast of layers (dola.py).
        elsewhere: names that other shards ask: they must have no task of ours.

    Raises:
        InputError: a task that cannot be loaded (no network, missing files, unknown), that would run generated code, or whose examples would
            be the very items that are asked.
    """
    # Left by an evaluation that was killed; the step's lease keeps a living one out.
    for left in work.glob(f"{CACHE}*"):
        shutil.rmtree(left, ignore_errors=True)
    names = settings["tasks"]
    places = {
        name: work / "tasks" / kept.name_of(name, settings, seed, identity.of(name), chat, dola)
        for name in names
        if identity is not None
    }
    found = {name: kept.read(path) for name, path in places.items() if path.is_file()}
    if found:
        log.info("%d of %d tasks are there from before", len(found), len(names))
    todo = [name for name in names if name not in found]
    tasks = {name: {score.task for score in scores} for name, scores in found.items()}
    if todo:
        local = all(
            (folder / name / f"{name}.yaml").is_file() or (folder / f"{name}.yaml").is_file()
            for name in names
        )
        with _quiet(work if local else None):
            from lm_eval.tasks import TaskManager

            from moesaic.evaluate.dola import Dola, DolaLM
            from moesaic.evaluate.prefix import SharedPrefixLM

            paths = [str(folder), *([settings["include_path"]] if settings["include_path"] else [])]
            manager = TaskManager(include_path=paths, include_defaults=not local)
            apart.check(apart.members(manager.task_index, [*names, *elsewhere]))
            loaded = {name: _load(manager, [name]) for name in todo}
            apart.check(tasks | {name: set(item["tasks"]) for name, item in loaded.items()})
            for name, item in loaded.items():
                key = f"evaluate.task_shots.{name}" if name in settings["task_shots"] else "evaluate.shots"
                _set_shots(item["tasks"], kept.shots(settings, name), seed, key)
            if dola is None:
                lm = SharedPrefixLM(model, tokenizer, settings["batch"], chat=chat)
            else:
                lm = DolaLM(model, tokenizer, settings["batch"], Dola.of(dola, model), chat=chat)
            for name, item in loaded.items():
                lm.progress_name = name
                found[name] = _evaluate(lm, item, settings, seed, chat)
                if name in places:
                    kept.write(places[name], found[name])
    else:
        apart.check(tasks)
    every = {
        score.task: replace(kept.estimated(score, settings["bootstrap"], seed), asked=name)
        for name in names
        for score in found[name]
    }
    return sorted(every.values(), key=lambda score: (not score.keys, score.task))


def _evaluate(lm: Any, tasks: Any, settings: dict[str, Any], seed: int, chat: bool) -> list[TaskScores]:
    """What one name gives: a task, or a group with its tasks."""
    import lm_eval

    # For each task anew: its scores must not depend on which tasks ran before it.
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    results = lm_eval.evaluate(
        lm, tasks, limit=settings["items"], bootstrap_iters=0, log_samples=True, apply_chat_template=chat
    )
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


# ---------------------------------------------------------------- loading


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


def _set_shots(tasks: dict[str, Any], shots: int, seed: int, key: str) -> None:
    """Args: key: of the configuration that `shots` is from."""
    for name, task in tasks.items():
        own = task.get_config("num_fewshot")
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"evaluate.tasks: {name} runs code that the model writes; run it with lm-eval yourself, in a sandbox"
            )
        if own == 0 and shots:
            log.warning("%s is defined with 0 shots; evaluate.shots = %d is not used for it", name, shots)
            continue
        if shots and _shows_what_it_asks(task):
            raise InputError(
                f"{key}: {shots} examples, but {name} has no split to take them from besides the one that is asked, so that a prompt could hold its "
                f"own answer; set evaluate.task_shots to 0 for it"
            )
        if own not in (None, shots):
            log.warning("%s is defined with %d shots; evaluate.shots = %d replaces them", name, own, shots)
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=seed)
        _check_enough(name, task, shots, key)


def _check_enough(name: str, task: Any, shots: int, key: str) -> None:
    """Raises InputError where a task has fewer examples than a prompt is to show."""
    sampler = getattr(task, "sampler", None)
    if not shots or sampler is None:
        return
    there = len(sampler.fewshot_docs())
    if there < shots:
        raise InputError(
            f"{key}: {shots} examples, and {name} has {there} to show; set evaluate.task_shots for it to {there} or fewer"
        )


def _shows_what_it_asks(task: Any) -> bool:
    """Whether lm-eval would draw examples from the items that are asked without leaving out the one that the prompt is for."""
    own = getattr(task, "fewshot_cfg", None)
    split = getattr(own, "split", None)
    if split is None and getattr(own, "samples", None) is not None:
        return False
    config = task.config
    asked = config.test_split or config.validation_split
    drawn = split or config.training_split or config.validation_split or config.test_split
    # lm-eval leaves the item out where the named split is the test split, and where neither is named.
    return bool(drawn == asked and split != config.test_split)


def _task(name: str, task: Any, results: Any, resamples: int, seed: int) -> TaskScores:
    samples = sorted(results["samples"][name], key=lambda item: item["doc_id"])
    choice = task.OUTPUT_TYPE == "multiple_choice"
    chance = (
        float(np.mean([1 / len(task.doc_to_choice(item["doc"])) for item in samples])) if choice else None
    )
    docs = list({item["doc_id"]: item["doc"] for item in samples}.values())
    units = [str(doc[kept.QUESTION]) for doc in docs] if all(kept.QUESTION in doc for doc in docs) else []
    metrics: list[Metric] = []
    items: dict[str, np.ndarray] = {}
    partial: dict[str, np.ndarray] = {}
    for key, value in sorted(results["results"][name].items()):
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        values = [item[metric] for item in samples if item["filter"] == kind and metric in item]
        label = _metric_name(key)
        if all(isinstance(item, int | float) for item in values) and math.isclose(
            float(np.mean(values)), value, rel_tol=1e-9, abs_tol=1e-12
        ):
            rate = set(values) <= {0, 1}
            numbers = np.asarray(values, dtype=np.float64)
            (items if len(values) == len(docs) else partial)[label] = numbers
            estimate = bootstrap.Estimate(value, None, None, len(values))  # kept.estimated completes it
            if metric in CHOICE_METRICS and not rate:
                choice = False  # a probability, as truthfulqa_mc2's: guessing gives another value
        else:
            rng = bootstrap.generator(seed, f"{name}/{key}")
            slow = min(resamples, kept.SLOW_RESAMPLES)
            estimate = _resampled(task.aggregation().get(metric), values, float(value), slow, rng)
        known = choice and metric in CHOICE_METRICS
        metrics.append(Metric(label, estimate, chance if known else None))
    keys = list({item["doc_id"]: item["doc_hash"][:16] for item in samples}.values())
    answers = choices.of_task(task, samples)
    return TaskScores(name, metrics, items, keys, choice, partial=partial, answers=answers, units=units)


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
                    tempfile.TemporaryDirectory(prefix=CACHE, dir=work, ignore_cleanup_errors=True)
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
