"""Where each step's files are, and which manifests it reads: the DAG, once, for the workflow and the command line alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.config import digest, step_settings, teacher_settings, variant_config
from moesaic.errors import InputError
from moesaic.flow.manifest import NAME
from moesaic.schema import Config

PREPARE = ("documents", "tokens", "chat", "tasks")


@dataclass(frozen=True)
class Plan:
    """One step, ready to run."""

    settings: dict[str, Any]
    inputs: dict[str, Path]
    out: Path


def folder(step: str, variant: str | None = None, stage: str | None = None) -> Path:
    """Folder of a step, relative to the working directory; an evaluation has one per stage."""
    root = Path("results")
    if step in PREPARE:
        return root / "prepare" / step
    if step in ("dense", "report"):
        return root / step if step == "dense" else root
    if step == "evaluate":
        assert stage is not None
        return root / "dense" / "evaluate" if stage == "dense" else root / str(variant) / "evaluate" / stage
    return root / str(variant) / step


def before(config: Config, stage: str) -> str:
    """The stage whose model this stage starts from."""
    names: list[str] = list(config.stages)
    return names[names.index(stage) - 1]


def inputs(
    config: Config, step: str, variant: str | None = None, stage: str | None = None
) -> dict[str, Path]:
    """Name -> manifest of everything that a step reads."""

    def at(name: str, **where: Any) -> Path:
        return folder(name, **where) / NAME

    match step:
        case "dense" | "documents" | "tasks":
            return {}
        case "tokens":
            return {"documents": at("documents"), "dense": at("dense")}
        case "chat":
            return {"dense": at("dense")}
        case "construct":
            return {"dense": at("dense"), "tokens": at("tokens")}
        case "evaluate":
            model = at("dense") if stage == "dense" else at(str(stage), variant=variant)
            return {"model": model, "tokens": at("tokens"), "tasks": at("tasks")}
        case "report":
            found = {f"prepare/{name}": at(name) for name in PREPARE} | {"dense": at("dense")}
            found["dense/evaluate"] = at("evaluate", stage="dense")
            for name in config.variants:
                for item in config.stages:
                    found[f"{name}/{item}"] = at(item, variant=name)
                    found[f"{name}/evaluate/{item}"] = at("evaluate", variant=name, stage=item)
            return found
    assert variant is not None
    own = variant_config(config, variant)
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


def _reads_dense(own: Config, step: str) -> bool:
    """True when a training stage needs the dense parent: as a teacher, as a student, or for its losses."""
    training: Any = getattr(own, step)
    if training.mixture.method.startswith("dynamic") and training.mixture.reference == "dense":
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


def plan_step(config: Config, step: str, variant: str | None = None, stage: str | None = None) -> Plan:
    """Settings, inputs and folder of one step. Raises InputError when the variant or the stage is missing or unknown."""
    if step == "teacher":
        return _plan_teacher(config, variant, stage)
    per_variant = step in ("construct", "pretrain", "tune", "distill") or (
        step == "evaluate" and stage != "dense"
    )
    if per_variant and variant is None:
        raise InputError(f"step {step} needs --variant, one of {', '.join(config.variants)}")
    known = ("dense", *config.stages)
    if step == "evaluate" and stage not in known:
        raise InputError(f"step evaluate needs --stage, one of {', '.join(known)}")
    if step in ("pretrain", "tune", "distill") and step not in config.stages:
        raise InputError(f"stages: {step} is not among the configured stages {config.stages}")
    if not per_variant:
        variant = None
    return Plan(
        step_settings(config, step, variant),
        inputs(config, step, variant, stage),
        folder(step, variant, stage),
    )
