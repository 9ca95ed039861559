"""Multiple choice and any other task through lm-evaluation-harness, on the model that is already in memory."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.evaluate.tasks import SUITE
from moesaic.flow.progress import Progress

log = logging.getLogger("moesaic.harness")


class _Bar:
    """What lm-eval takes for tqdm: shows its progress as our lines."""

    def __init__(self, total: int = 0, desc: str = "requests", **_: Any):
        self._progress = Progress(f"lm-eval: {desc.lower()}", total, "requests")

    def update(self, n: int = 1) -> None:
        self._progress.update(n)

    def close(self) -> None:
        pass


@dataclass
class Task:
    """Per-item values of a task by metric, and what guessing would get; `overall` where there are no items."""

    items: dict[str, np.ndarray] = field(default_factory=dict)
    chance: float | None = None
    overall: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    """Metric -> (value, standard error) as the harness gives it, for metrics that are no mean over items."""


def evaluate(
    model: Any, tokenizer: Any, settings: Mapping[str, Any], tasks_folder: Path, cache: Path, seed: int
) -> dict[str, Task]:
    """Run the configured tasks.

    Args:
        settings: schema.Evaluate as a dict. tasks_folder: the tasks step's folder. cache: for the datasets library.
    """
    if not settings["tasks"]:
        return {}
    local = all(name in SUITE for name in settings["tasks"])
    # Local files only: the datasets library must neither ask the network nor fill the user's home.
    os.environ["HF_DATASETS_CACHE"] = str(cache.absolute())
    if local:
        os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models import huggingface
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    huggingface.tqdm = _Bar
    paths = [str(tasks_folder), *([settings["include_path"]] if settings["include_path"] else [])]
    manager = TaskManager(include_path=paths, include_defaults=not local)
    limit = settings["items"]
    log.info("lm-eval: %s, %s items each", ", ".join(settings["tasks"]), limit or "all")
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings["batch"]),
        tasks=list(settings["tasks"]), num_fewshot=settings["shots"], limit=limit, task_manager=manager, bootstrap_iters=0,
        log_samples=True, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed, verbosity="ERROR",
    )  # fmt: skip
    assert results is not None
    return {name: _task(name, results) for name in results["results"]}


def _task(name: str, results: Mapping[str, Any]) -> Task:
    task = Task()
    samples = sorted(results["samples"].get(name, []), key=lambda sample: sample["doc_id"])
    for key, value in results["results"][name].items():
        metric, _, suffix = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, float | int) or suffix == "":
            continue
        if samples and all(isinstance(sample.get(metric), float | int | np.floating) for sample in samples):
            task.items[metric] = np.array([float(sample[metric]) for sample in samples])
        else:
            error = results["results"][name].get(f"{metric}_stderr,{suffix}")
            task.overall[metric] = (float(value), float(error) if isinstance(error, float) else None)
    choices = [len(sample["arguments"]) for sample in samples]
    if "acc" in task.items and min(choices) > 1:
        task.chance = float(np.mean([1 / count for count in choices]))
    return task
