"""What each step is run on: its settings, the manifests that it reads and its folder. The DAG, once, for the workflow and the command line alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.config import variant_config
from moesaic.contradictions import OBSERVING
from moesaic.errors import InputError
from moesaic.flow.folders import (
    PER_VARIANT,
    ROUNDS,
    SHARDED,
    SUITES,
    TRAINING,
    Part,
    before,
    evaluation_shards,
    folder,
    prepared,
)
from moesaic.flow.manifest import NAME
from moesaic.flow.rounds import counts, distill_inputs, part_of, preference_inputs, round_steps, with_part
from moesaic.flow.shared import caches, teacher_folder, text_folder, texts
from moesaic.schema import Config
from moesaic.settings import offline, sampled, step_settings, teacher_settings, text_settings

__all__ = ["Part", "Plan", "evaluation_shards", "folder", "inputs", "plan_step", "prepared", "round_steps"]


@dataclass(frozen=True)
class Plan:
    """One step, ready to run."""

    settings: dict[str, Any]
    inputs: dict[str, Path]
    out: Path


def inputs(
    config: Config, step: str, variant: str | None = None, stage: str | None = None, part: Part | None = None
) -> dict[str, Path]:
    """Name -> manifest of everything that a step reads."""

    def at(name: str, **where: Any) -> Path:
        return folder(name, **where) / NAME

    match step:
        case "dense" | "documents" | "images" | "tasks" | "temporal" | "science" | "reliability":
            return {}
        case "tokens":
            return {"documents": at("documents"), "dense": at("dense")}
        case "chat":
            return {"dense": at("dense")} | ({"images": at("images")} if config.data.images else {})
        case "construct":
            return {"dense": at("dense"), "tokens": at("tokens")}
        case "evaluate" | "evaluate_part":
            model = at("dense") if stage == "dense" else at(str(stage), variant=variant)
            found = {"model": model, "tokens": at("tokens"), "tasks": at("tasks")}
            suites = {name: at(name) for name in SUITES if name in config.evaluate.suites}
            if step == "evaluate_part":
                return found | suites
            found |= {"chat": at("chat")} if config.evaluate.instructions is not None else {}
            if config.data.images:
                found |= {name: at(name) for name in ("images", "chat")}
            if stage != "dense":
                found["parent"] = at("evaluate", stage="dense")
            for number in evaluation_shards(config):
                where = folder("evaluate_part", variant, stage, Part(shard=number))
                found[f"part-{number}"] = where / NAME
            return found | suites
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
        return preference_inputs(own, step, variant, part_of(own, step, part))
    if step in ("student_text", "pair_scores") or (step == "distill" and sampled(own)):
        return distill_inputs(config, own, step, variant, part_of(own, step, part))
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
    compares = training.mixture.method in OBSERVING
    if compares and training.mixture.reference == "dense":
        return True
    deep = getattr(training, "depth", None)
    if deep is not None and deep.of == "dense":
        return True
    teacher = getattr(training, "teacher", None)
    student = getattr(training, "student", None)
    resident = teacher == "dense" and not offline(own, step)
    return resident or (student is not None and student.of == "dense")


def _plan_texts(config: Config, variant: str | None, name: str | None, part: Part | None) -> Plan:
    """A shard of a teacher's answers, by its owner and name, or by a variant that reads them."""
    known = texts(config)
    variant = known.get((str(variant), str(name)), variant)
    if variant not in config.variants or not sampled(variant_config(config, variant)):
        listed = ", ".join(f"--variant {item}" for item in known.values()) or "none is configured"
        raise InputError(f"step teacher_text needs a variant whose distill.data is samples: {listed}")
    own = variant_config(config, variant)
    part = part_of(own, "student_text", Part(1, part.shard if part else 0))
    teacher = (
        folder("dense") if own.distill.teacher == "dense" else folder(before(config, "distill"), variant)
    )
    return Plan(
        text_settings(config, variant) | {"shard": part.shard, "shards": own.distill.samples.shards},
        {"teacher-model": teacher / NAME, "chat": folder("chat") / NAME},
        text_folder(config, variant) / str(part.shard),
    )


def _plan_teacher(config: Config, variant: str | None, stage: str | None) -> Plan:
    """A cache by its owner and name, or by a variant and the stage that trains on it."""
    known = caches(config)
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
    if step == "teacher_text":
        return _plan_texts(config, variant, stage, part)
    evaluates = step in ("evaluate", "evaluate_part")
    per_variant = step in PER_VARIANT or (evaluates and stage != "dense")
    if per_variant and variant is None:
        raise InputError(f"step {step} needs --variant, one of {', '.join(config.variants)}")
    known = ("dense", *config.stages)
    if evaluates and stage not in known:
        raise InputError(f"step {step} needs --stage, one of {', '.join(known)}")
    needed = SHARDED.get(step, step)
    if needed in TRAINING and needed not in config.stages:
        raise InputError(f"stages: {needed} is not among the configured stages {config.stages}")
    if not per_variant:
        variant = None
    settings = step_settings(config, step, variant)
    if step == "evaluate_part":
        part = part or Part()
        if part.shard not in evaluation_shards(config):
            raise InputError(
                f"step evaluate_part: shard {part.shard} is not one of evaluate.shards ({config.evaluate.shards}); 1 shard is the evaluation itself"
            )
        settings |= {"shard": part.shard, "shards": config.evaluate.shards}
    if needed in ROUNDS:
        assert variant is not None
        own = variant_config(config, variant)
        if needed == "preference" or sampled(own):
            part = part_of(own, step, part)
            settings = with_part(own, step, settings, part)
            if step == needed and part.round == counts(own, needed)[0]:
                part = Part()  # the stage's own folder, where the stages after it look
        elif step in SHARDED:
            raise InputError(
                f"step {step}: distill.data is {own.distill.data}; only with samples is there anything to sample"
            )
        else:
            part = None
    return Plan(settings, inputs(config, step, variant, stage, part), folder(step, variant, stage, part))
