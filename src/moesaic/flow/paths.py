"""Where each step's files are, and which manifests it reads: the DAG, once, for the workflow and the command line alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.config import digest, on_pairs, step_settings, teacher_settings, text_settings, variant_config
from moesaic.errors import InputError
from moesaic.flow.manifest import NAME
from moesaic.schema import Config
from moesaic.schema.teaching import TEXT_LOSSES

SUITES = ("temporal", "science", "reliability")
"""Questions that evaluate.suites evaluates."""
OPTIONAL = ("images", *SUITES)
"""Shared steps that are part of a run only where data.{name} is set."""
PREPARE = ("documents", "tokens", "images", "chat", "tasks", *SUITES)
"""Shared steps."""
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
            found = {"dense": at("dense")}
            # Its questions are not trained on.
            found |= {"reliability": at("reliability")} if config.data.reliability is not None else {}
            return found | ({"images": at("images")} if config.data.images else {})
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
        return _round_inputs(own, step, variant, _part(own, step, part))
    if step in ("student_text", "pair_scores") or (step == "distill" and sampled(own)):
        return _sample_inputs(config, own, step, variant, _part(own, step, part))
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


def evaluation_shards(config: Config) -> range:
    """The shards of every evaluation; none where it is one job."""
    return range(config.evaluate.shards if config.evaluate.shards > 1 else 0)


def round_steps(config: Config, variant: str, stage: str = "preference") -> Iterator[tuple[str, Part]]:
    """What a stage in rounds runs before its last training, in order; nothing of a stage without rounds."""
    own = variant_config(config, variant)
    if stage not in ROUNDS or (stage == "distill" and not sampled(own)):
        return
    rounds, shards, _ = _rounds(own, stage)
    for number in range(1, rounds + 1):
        for step in ROUNDS[stage] if stage == "preference" else _sample_steps(own):
            for shard in range(shards):
                yield step, Part(number, shard)
        if number < rounds:
            yield stage, Part(number)


def _rounds(own: Config, stage: str) -> tuple[int, int, str]:
    """Rounds, shards and where the shards are set."""
    if stage == "preference":
        return own.preference.rounds, own.preference.sampling.shards, "preference.sampling.shards"
    return own.distill.rounds, own.distill.samples.shards, "distill.samples.shards"


def _part(own: Config, step: str, part: Part | None) -> Part:
    """The part with its round filled in.

    Raises:
        InputError: a round or a shard that the configuration does not have.
    """
    stage = SHARDED.get(step, step)
    rounds, shards, key = _rounds(own, stage)
    part = part or Part()
    number = rounds if part.round is None else part.round
    if not 1 <= number <= rounds:
        raise InputError(f"step {step}: round {number} is not between 1 and {stage}.rounds ({rounds})")
    if not 0 <= part.shard < shards:
        raise InputError(f"step {step}: shard {part.shard} is not between 0 and {key} ({shards}) - 1")
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


# ---------------------------------------------------------------- distillation on sampled answers


def sampled(own: Config) -> bool:
    """True when distillation trains on sampled answers. Args: own: a variant's configuration."""
    return own.distill.data == "samples"


def _sample_steps(own: Config) -> tuple[str, ...]:
    """The steps of a round of distillation: pairs are scored, token losses need the student's answers only where they train on them."""
    if on_pairs(own):
        return ROUNDS["distill"]
    return () if own.distill.samples.text == "teacher" else ("student_text",)


def _sample_inputs(config: Config, own: Config, step: str, variant: str, part: Part) -> dict[str, Path]:
    """Inputs of a step of distillation on samples: the first round begins with the stage's student, another with that of the round before."""
    assert part.round is not None
    distill, previous = own.distill, folder(before(own, "distill"), variant) / NAME
    dense = folder("dense") / NAME
    first = dense if distill.student.of == "dense" else previous
    last = folder("distill", variant, part=Part(part.round - 1)) / NAME
    found = {"student": first if part.round == 1 else last, "chat": folder("chat") / NAME}
    teacher = {"teacher-model": dense if distill.teacher == "dense" else previous}

    def texts(shards: range) -> dict[str, Path]:
        root = text_folder(config, variant)
        return {f"teacher-text-{i}": root / str(i) / NAME for i in shards}

    def parts(name: str, shards: range) -> dict[str, Path]:
        return {
            f"{name}-{i}".replace("_", "-"): folder(name, variant, part=Part(part.round, i)) / NAME
            for i in shards
        }

    if step == "student_text":
        return found
    mine = range(part.shard, part.shard + 1)
    if step == "pair_scores":
        return found | teacher | texts(mine) | parts("student_text", mine)
    every = range(distill.samples.shards)
    if on_pairs(own):
        found |= parts("pair_scores", every)
        return found | ({"tokens": folder("tokens") / NAME} if distill.pairs.corpus else {})
    if distill.loss not in TEXT_LOSSES:
        found |= teacher
    if distill.samples.text != "student":
        found |= texts(every)
    return found | (parts("student_text", every) if distill.samples.text != "teacher" else {})


def text_folder(config: Config, variant: str) -> Path:
    """Folder of the teacher's answers that a variant's distillation reads, one folder per shard; shared as caches of offline teachers are."""
    settings = text_settings(config, variant)
    owner = "dense" if settings["teacher"] == "dense" else variant
    shards = variant_config(config, variant).distill.samples.shards
    return Path("results") / owner / "teacher_text" / digest(settings | {"shards": shards})[:12]


def texts(config: Config) -> dict[tuple[str, str], str]:
    """All answers of teachers of the run, (owner, name) -> a variant that reads them."""
    found: dict[tuple[str, str], str] = {}
    for variant in config.variants:
        own = variant_config(config, variant)
        reads = on_pairs(own) or own.distill.samples.text != "student"
        if "distill" in config.stages and sampled(own) and reads:
            root = text_folder(config, variant)
            found.setdefault((root.parts[-3], root.name), variant)
    return found


def _plan_texts(config: Config, variant: str | None, name: str | None, part: Part | None) -> Plan:
    """A shard of a teacher's answers, by its owner and name, or by a variant that reads them."""
    known = texts(config)
    variant = known.get((str(variant), str(name)), variant)
    if variant not in config.variants or not sampled(variant_config(config, variant)):
        listed = ", ".join(f"--variant {item}" for item in known.values()) or "none is configured"
        raise InputError(f"step teacher_text needs a variant whose distill.data is samples: {listed}")
    own = variant_config(config, variant)
    part = _part(own, "student_text", Part(1, part.shard if part else 0))
    teacher = (
        folder("dense") if own.distill.teacher == "dense" else folder(before(config, "distill"), variant)
    )
    return Plan(
        text_settings(config, variant) | {"shard": part.shard, "shards": own.distill.samples.shards},
        {"teacher-model": teacher / NAME, "chat": folder("chat") / NAME},
        text_folder(config, variant) / str(part.shard),
    )


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
            part = _part(own, step, part)
            settings = _with_part(own, step, settings, part)
            if step == needed and part.round == _rounds(own, needed)[0]:
                part = Part()  # the stage's own folder, where the stages after it look
        elif step in SHARDED:
            raise InputError(
                f"step {step}: distill.data is {own.distill.data}; only with samples is there anything to sample"
            )
        else:
            part = None
    return Plan(settings, inputs(config, step, variant, stage, part), folder(step, variant, stage, part))


def _with_part(own: Config, step: str, settings: dict[str, Any], part: Part) -> dict[str, Any]:
    """A step's settings with what they have of its round and shard."""
    if step == "sample":
        return settings | {"round": part.round, "shard": part.shard, "shards": own.preference.sampling.shards}
    if SHARDED.get(step, step) != "distill":
        return settings
    # The student is cut out of the model once; after the first round it is there.
    student = own.distill.student.model_dump(mode="json") if part.round == 1 else None
    if step == "student_text":
        where = {"round": part.round, "shard": part.shard, "shards": own.distill.samples.shards}
        return settings | where | {"student": student}
    if step == "pair_scores":
        return settings | {"student": student}
    last = part.round == own.distill.rounds
    return settings | {"distill": settings["distill"] | {"student": student}, "last": last}
