"""Runs on sampled answers for distillation.py: the rounds of the workflow, in a folder of their own that ends at the same number of tokens."""

import contextlib
from pathlib import Path
from typing import Any

import common
import yaml

from moesaic import config
from moesaic.evaluate import instructions
from moesaic.flow import manifest, paths
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import STEPS, execute
from moesaic.generate import sample
from moesaic.model import load
from moesaic.schema import Evaluate

TOKENS = 512
"""Of a block of the corpus, which sets how many tokens a run on sampled answers sees."""
ROUNDS = 5
SAMPLED: dict[str, dict[str, Any]] = {
    "seqkd-samples": {"loss": "seqkd"},
    "cald-samples": {"loss": "cald", "samples": {"text": "both"}, "rounds": ROUNDS},
    "dpkd-fixed": {"loss": "dpkd", "pairs": {"alarm_drop": None}},
    "dpkd-refreshed": {"loss": "dpkd", "rounds": ROUNDS, "pairs": {"alarm_drop": None}},
    "dpkd-guarded": {
        "loss": "dpkd-guarded",
        "rounds": ROUNDS,
        "pairs": {"alarm_drop": None, "refresh_drop": None},
    },
}
"""On answers to instructions. The alarm is off, so that a collapse is measured and not avoided; rounds do not end early, so that tokens are equal."""


def distill(arguments: Any, constructed: Path, name: str, seed: int) -> Path:
    """All rounds of a run on sampled answers, as the workflow does them, in a folder of its own with the shared steps linked in; returns the last step's."""
    place = arguments.work / f"{name}-{seed}"
    for shared in ("dense", "prepare"):
        link = place / "results" / shared
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            # Not a link to the whole of dense: the teacher's answers are written beside its model.
            if shared == "dense":
                link.mkdir()
                for part in ("model", manifest.NAME):
                    (link / part).symlink_to((arguments.results / shared / part).resolve())
            else:
                link.symlink_to((arguments.results / shared).resolve())
    (arguments.work / "cache").mkdir(exist_ok=True)
    if not (place / "results/cache").exists():  # answers and scores are shared by the runs
        (place / "results/cache").symlink_to((arguments.work / "cache").resolve())
    built = place / "results/student/construct"
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        built.symlink_to(constructed.resolve())
    rounds = SAMPLED[name].get("rounds", 1)
    tokens = arguments.steps * arguments.batch * TOKENS // rounds
    own = {
        "teacher": "dense", "data": "samples", "student": {"per_token": arguments.per_token}, "tokens": tokens, "steps": 100 * arguments.steps,
        "batch": arguments.batch, "micro_batch": arguments.micro_batch, "save_every": 20, "validation_batches": 1,
        "samples": {"prompts": arguments.prompts, "new_tokens": arguments.new_tokens},
        "optimizer": {"lr": arguments.rate, "warmup": max(1, arguments.steps // 10 // rounds), "freeze_embeddings": True},
    }  # fmt: skip
    base = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    raw = {key: base[key] for key in ("model", "data")}
    raw |= {"seed": seed, "stages": ["construct", "distill"], "variants": {"student": {}}}
    loaded = config.check(raw | {"distill": config.merge(own, SAMPLED[name])})
    before = [("teacher_text", paths.Part(None, 0)), *paths.round_steps(loaded, "student", "distill")]
    with contextlib.chdir(place):
        for step, part in [*before, ("distill", None)]:
            plan = paths.plan_step(loaded, step, "student", part=part)
            if not common.current(plan):
                execute(STEPS[step], plan.settings, plan.inputs, plan.out)
    return place / plan.out


def rouge(arguments: Any, name: str, seed: int, model: Any, made: Manifest) -> float | None:
    """ROUGE-L on development questions, mean over decoding seeds; None without --questions. The test side stays for what is chosen.

    Args: made: the step that made the model; kept answers are of this step's model with as many experts per token alone.
    """
    if not arguments.questions:
        return None
    own = Evaluate(
        bootstrap=100, instructions={"items": arguments.questions, "new_tokens": arguments.new_tokens}
    )
    digest = config.digest([sample.model_digest(made), arguments.per_token])
    out = arguments.work / f"answers-{name}-{seed}".replace(", ", "-").replace(" ", "-")
    tasks = instructions.run(
        model, load.load_tokenizer(arguments.results / "dense/model"), own.model_dump(mode="json"), digest,
        manifest.read(arguments.results / "prepare/chat"), out, 0, name,
    )  # fmt: skip
    return float(next(task for task in tasks if task.task == "instructions_dev").metrics[0].estimate.value)
