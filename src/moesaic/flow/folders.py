"""Where each step's files are."""

from dataclasses import dataclass
from pathlib import Path

from moesaic.schema import Config

SUITES = ("temporal", "science", "reliability")
"""Questions that evaluate.suites evaluates."""
OPTIONAL = ("images", *SUITES)
"""Shared steps that are part of a run only where data.{name} is set."""
PREPARE = ("documents", "tokens", "images", *SUITES, "chat", "tasks")
"""Shared steps, each behind those that it reads."""
TRAINING = ("pretrain", "tune", "preference", "distill")
ROUNDS = {"preference": ("sample", "rate"), "distill": ("student_text", "pair_scores")}
"""Stages that may go in rounds, and the steps of a round before its training, which are cut into shards."""
SHARDED = {step: stage for stage, steps in ROUNDS.items() for step in steps}
PER_VARIANT = ("construct", *SHARDED, *TRAINING)


@dataclass(frozen=True)
class Part:
    """Which part of a stage that goes in rounds: its steps (ROUNDS) and its training run once per round, the steps per shard."""

    round: int | None = None
    """From 1; None: the last one."""
    shard: int = 0
    """From 0."""


def folder(step: str, variant: str | None = None, stage: str | None = None, part: Part | None = None) -> Path:
    """Folder of a step, relative to the working directory; an evaluation has one per stage, a stage in rounds one per round but the last."""
    root = Path("results")
    if step in PREPARE:
        return root / "prepare" / step
    if step in ("dense", "report"):
        return root / step if step == "dense" else root
    if step == "evaluate":
        assert stage is not None
        return root / "dense" / "evaluate" if stage == "dense" else root / str(variant) / "evaluate" / stage
    if step == "evaluate_part":
        assert stage is not None
        assert part is not None
        owner = "dense" if stage == "dense" else str(variant)
        return root / owner / step / stage / str(part.shard)
    if part is not None and part.round is not None:
        within = root / str(variant) / "rounds" / str(part.round) / step
        return within / str(part.shard) if step in SHARDED else within
    return root / str(variant) / step


def prepared(config: Config) -> list[str]:
    """The shared steps of a run, the dense parent's left out; without conversations there is no chat step."""
    names = [name for name in PREPARE if name not in OPTIONAL or getattr(config.data, name) is not None]
    talks = config.data.chat.sources or config.data.images is not None
    return names if talks else [name for name in names if name != "chat"]


def before(config: Config, stage: str) -> str:
    """The stage whose model this stage starts from."""
    names: list[str] = list(config.stages)
    return names[names.index(stage) - 1]


def evaluation_shards(config: Config) -> range:
    """The shards of every evaluation; none where it is one job."""
    return range(config.evaluate.shards if config.evaluate.shards > 1 else 0)
