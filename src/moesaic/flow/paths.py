"""Where each step's files are, and which manifests it reads: the DAG, once, for the workflow and the command line alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.config import step_settings, variant_config
from moesaic.errors import InputError
from moesaic.flow.manifest import NAME
from moesaic.schema import Config

PREPARE = ("documents", "tokens", "chat", "tasks", "science")
"""Shared steps; `science` is one of a run only where data.science asks for it."""


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


def prepared(config: Config) -> list[str]:
    """The shared steps of a run, the dense parent's left out."""
    return [name for name in PREPARE if name != "science" or config.data.science is not None]


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
        case "dense" | "documents" | "tasks" | "science":
            return {}
        case "tokens":
            return {"documents": at("documents"), "dense": at("dense")}
        case "chat":
            return {"dense": at("dense")}
        case "construct":
            return {"dense": at("dense"), "tokens": at("tokens")}
        case "evaluate":
            model = at("dense") if stage == "dense" else at(str(stage), variant=variant)
            found = {"model": model, "tokens": at("tokens"), "tasks": at("tasks")}
            return found | ({"science": at("science")} if "science" in config.evaluate.suites else {})
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
    found = {"model": at(before(config, step), variant=variant)}
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
    return teacher == "dense" or (student is not None and student.of == "dense")


def plan_step(config: Config, step: str, variant: str | None = None, stage: str | None = None) -> Plan:
    """Settings, inputs and folder of one step. Raises InputError when the variant or the stage is missing or unknown."""
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
