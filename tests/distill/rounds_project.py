"""A tiny project that distils on sampled answers, and how its steps are run."""

import shutil
from pathlib import Path

from moesaic import config
from moesaic.flow import metrics, paths
from moesaic.flow.step import STEPS, execute

CHANGES = {
    "stages": ["construct", "distill"],
    "data": {"chat": {"max_tokens": 120}},
    "distill": {
        "teacher": "dense", "data": "samples", "loss": "dpkd", "student": {"per_token": 1}, "steps": 6, "batch": 4, "micro_batch": 2,
        "save_every": 2, "validation": 0.2, "validation_batches": 2, "optimizer": {"lr": 1e-3, "warmup": 0},
        "samples": {"prompts": 14, "new_tokens": 10, "part": 4, "batch": 4, "max_prompt": 100},
    },
}  # fmt: skip


def here(built, folder):
    shutil.copytree(built.parent, folder)
    return folder / "config.yaml"


def step(path, name, part=None, **changes):
    plan = paths.plan_step(config.load(path, changes), name, "activation", part=part)
    execute(STEPS[name], plan.settings, plan.inputs, plan.out)
    return plan.out


def whole(path, **distill):
    """Everything before the last training, then that; returns its folder."""
    loaded = config.load(path, {"distill": distill})
    for shard in range(loaded.distill.samples.shards):
        step(path, "teacher_text", paths.Part(None, shard), distill=distill)
    for name, part in paths.round_steps(loaded, "activation", "distill"):
        step(path, name, part, distill=distill)
    return step(path, "distill", distill=distill)


def series(out):
    return metrics.series(out / "work/metrics.jsonl")


ROUND = Path("results/activation/rounds")


def loaded(path, **distill):
    return config.load(path, {"distill": distill})
