"""Where each step's files are, and which manifests it reads: the DAG, once, for the workflow and the command line alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.config import digest, step_settings, teacher_settings, variant_config
from moesaic.errors import InputError
from moesaic.flow.manifest import NAME
from moesaic.schema import Config

SUITES = ("temporal", "science")
"""Questions that evaluate.suites evaluates."""
OPTIONAL = ("images", *SUITES)
"""Shared steps that are part of a run only where data.{name} is set."""
PREPARE = ("documents", "tokens", "images", "chat", "tasks", *SUITES)
"""Shared steps."""
TRAINING = ("pretrain", "tune", "preference", "distill")
PER_VARIANT = ("construct", "sample", "rate", *TRAINING)


@dataclass(frozen=True)
class Part:
    """Which part of a stage that goes in rounds (preference): its steps sample, rate and preference run once per round, the first two per shard."""

    round: int | None = None
    """From 1; None: the last one."""
    shard: int = 0
    """From 0."""


@dataclass(frozen=True)
class Plan:
    """One step, ready to run."""

    settings: dict[str, Any]
    inputs: dict[str, Path]
    out: Path


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
    if part is not None and part.round is not None:
        within = root / str(variant) / "rounds" / str(part.round) / step
        return within / str(part.shard) if step in ("sample", "rate") else within
    return root / str(variant) / step


def prepared(config: Config) -> list[str]:
    """The shared steps of a run, the dense parent's left out."""
    return [name for name in PREPARE if name not in OPTIONAL or getattr(config.data, name) is not None]


def before(config: Config, stage: str) -> str:
    """The stage whose model this stage starts from."""
    names: list[str] = list(config.stages)
    return names[names.index(stage) - 1]


def inputs(
    config: Config, step: str, variant: str | None = None, stage: str | None = None, part: Part | None = None
) -> dict[str, Path]:
    """Name -> manifest of everything that a step reads."""

    def at(name: str, **where: Any) -> Path:
        return folder(name, **where) / NAME

    match step:
        case "dense" | "documents" | "images" | "tasks" | "temporal" | "science":
            return {}
        case "tokens":
            return {"documents": at("documents"), "dense": at("dense")}
        case "chat":
            found = {"dense": at("dense")}
            return found | ({"images": at("images")} if config.data.images else {})
        case "construct":
            return {"dense": at("dense"), "tokens": at("tokens")}
        case "evaluate":
            model = at("dense") if stage == "dense" else at(str(stage), variant=variant)
            found = {"model": model, "tokens": at("tokens"), "tasks": at("tasks")}
            if config.data.images:
                found |= {name: at(name) for name in ("images", "chat")}
            return found | {name: at(name) for name in SUITES if name in config.evaluate.suites}
        case "report":
            found = {f"prepare/{name}": at(name) for name in prepared(config)} | {"dense": at("dense")}
            found["dense/evaluate"] = at("evaluate", stage="dense")
            for name in config.variants:
                for item in config.stages:
                    found[f"{name}/{item}"] = at(item, variant=name)
                    found[f"{name}/evaluate/{item}"] = at("evaluate", variant=name, stage=item)
            return found
    assert variant is not None
    own = variant_config(config, variant)
    if step in ("sample", "rate", "preference"):
        return _round_inputs(own, step, variant, _part(own, step, part))
    found = {"model": at(before(config, step), variant=variant)}
    if step in ("pretrain", "distill") and offline(own, step):
        found["teacher"] = teacher_folder(config, variant, step) / NAME
    if step == "pretrain":
        found["tokens"] = at("tokens")
    elif step == "tune":
        found["chat"] = at("chat")
    elif step == "distill":
        source = "tokens" if own.distill.data == "text" else "chat"
        found[source] = at(source)
    if _reads_dense(own, step):
        found["dense"] = at("dense")
    return found


def round_steps(config: Config, variant: str) -> Iterator[tuple[str, Part]]:
    """What the preference stage runs before its last training, in order."""
    own = variant_config(config, variant).preference
    for number in range(1, own.rounds + 1):
        for step in ("sample", "rate"):
            for shard in range(own.sampling.shards):
                yield step, Part(number, shard)
        if number < own.rounds:
            yield "preference", Part(number)


def _part(own: Config, step: str, part: Part | None) -> Part:
    """The part with its round filled in.

    Raises:
        InputError: a round or a shard that the configuration does not have.
    """
    rounds, shards = own.preference.rounds, own.preference.sampling.shards
    part = part or Part()
    number = rounds if part.round is None else part.round
    if not 1 <= number <= rounds:
        raise InputError(f"step {step}: round {number} is not between 1 and preference.rounds ({rounds})")
    if not 0 <= part.shard < shards:
        raise InputError(
            f"step {step}: shard {part.shard} is not between 0 and preference.sampling.shards ({shards}) - 1"
        )
    return Part(number, part.shard)


def _round_inputs(own: Config, step: str, variant: str, part: Part) -> dict[str, Path]:
    """Inputs of a step of the preference stage: a round begins with the model of the round before, the first with the stage before."""
    assert part.round is not None
    first = folder(before(own, "preference"), variant) / NAME
    last = folder("preference", variant, part=Part(part.round - 1)) / NAME
    found = {"model": first if part.round == 1 else last}
    match step:
        case "sample":
            found["temporal"] = folder("temporal") / NAME
        case "rate":
            found |= {
                "temporal": folder("temporal") / NAME,
                "answers": folder("sample", variant, part=part) / NAME,
            }
            if own.preference.reference == "stage" and part.round > 1:
                found["reference"] = first
        case "preference":
            for shard in range(own.preference.sampling.shards):
                found[f"pairs-{shard}"] = folder("rate", variant, part=Part(part.round, shard)) / NAME
    return found


def _reads_dense(own: Config, step: str) -> bool:
    """True when a training stage needs the dense parent: as a teacher, as a student, or for its losses."""
    training: Any = getattr(own, step)
    compares = training.mixture.method in ("dynamic", "dynamic-paper", "ref-loss")
    if compares and training.mixture.reference == "dense":
        return True
    deep = getattr(training, "depth", None)
    if deep is not None and deep.of == "dense":
        return True
    teacher = getattr(training, "teacher", None)
    student = getattr(training, "student", None)
    resident = teacher == "dense" and not offline(own, step)
    return resident or (student is not None and student.of == "dense")


# ---------------------------------------------------------------- caches of offline teachers


def offline(own: Config, stage: str) -> bool:
    """True when a stage trains on a cache of its teacher. Args: own: a variant's configuration."""
    training: Any = getattr(own, stage)
    return getattr(training, "offline", None) is not None and training.teacher is not None


def teacher_folder(config: Config, variant: str, stage: str) -> Path:
    """Folder of the cache that a variant's stage trains on. Equal settings share one, and the dense parent's is shared by all variants."""
    settings = teacher_settings(config, stage, variant)
    source = "tokens" if settings["data"] == "text" else "chat"
    owner = "dense" if settings["teacher"] == "dense" else variant
    return Path("results") / owner / "teacher" / f"{source}-top{settings['top']}-{digest(settings)[:8]}"


def teachers(config: Config) -> dict[tuple[str, str], tuple[str, str]]:
    """Every cache of the run, (owner, name) -> a (variant, stage) that trains on it."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for variant in config.variants:
        own = variant_config(config, variant)
        for stage in config.stages:
            if stage in ("pretrain", "distill") and offline(own, stage):
                folder = teacher_folder(config, variant, stage)
                found.setdefault((folder.parts[-3], folder.name), (variant, stage))
    return found


def _plan_teacher(config: Config, variant: str | None, stage: str | None) -> Plan:
    """A cache by its owner and name, or by a variant and the stage that trains on it."""
    known = teachers(config)
    variant, stage = known.get((str(variant), str(stage)), (variant, stage))
    if variant not in config.variants or stage not in ("pretrain", "distill"):
        listed = ", ".join(f"--variant {v} --stage {s}" for v, s in known.values()) or "none is configured"
        raise InputError(f"step teacher needs a variant and a stage with an offline teacher: {listed}")
    settings = teacher_settings(config, stage, variant)
    source = "tokens" if settings["data"] == "text" else "chat"
    model = folder("dense") if settings["teacher"] == "dense" else folder(before(config, stage), variant)
    return Plan(
        settings,
        {"model": model / NAME, source: folder(source) / NAME},
        teacher_folder(config, variant, stage),
    )


def plan_step(
    config: Config, step: str, variant: str | None = None, stage: str | None = None, part: Part | None = None
) -> Plan:
    """Settings, inputs and folder of one step.

    Raises:
        InputError: the variant, the stage, the round or the shard is missing or unknown.
    """
    if step == "teacher":
        return _plan_teacher(config, variant, stage)
    per_variant = step in PER_VARIANT or (step == "evaluate" and stage != "dense")
    if per_variant and variant is None:
        raise InputError(f"step {step} needs --variant, one of {', '.join(config.variants)}")
    known = ("dense", *config.stages)
    if step == "evaluate" and stage not in known:
        raise InputError(f"step evaluate needs --stage, one of {', '.join(known)}")
    needed = "preference" if step in ("sample", "rate") else step
    if needed in TRAINING and needed not in config.stages:
        raise InputError(f"stages: {needed} is not among the configured stages {config.stages}")
    if not per_variant:
        variant = None
    settings = step_settings(config, step, variant)
    if step in ("sample", "rate", "preference"):
        assert variant is not None
        own = variant_config(config, variant)
        part = _part(own, step, part)
        if step == "sample":
            settings |= {"round": part.round, "shard": part.shard, "shards": own.preference.sampling.shards}
        elif step == "preference" and part.round == own.preference.rounds:
            part = Part()  # the stage's own folder, where the stages after it look
    return Plan(settings, inputs(config, step, variant, stage, part), folder(step, variant, stage, part))
