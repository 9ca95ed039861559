"""Stages that may go in rounds: preference tuning and distillation on sampled answers. What a round runs, and what each of its steps reads.

A round begins with the model of the round before, the first one with the model of the stage before.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesaic.config import variant_config
from moesaic.errors import InputError
from moesaic.flow.folders import ROUNDS, SHARDED, Part, before, folder
from moesaic.flow.manifest import NAME
from moesaic.flow.shared import text_folder
from moesaic.schema import Config
from moesaic.schema.teaching import TEXT_LOSSES
from moesaic.settings import on_pairs, sampled


def round_steps(config: Config, variant: str, stage: str = "preference") -> Iterator[tuple[str, Part]]:
    """What a stage in rounds runs before its last training, in order; nothing of a stage without rounds."""
    own = variant_config(config, variant)
    if stage not in ROUNDS or (stage == "distill" and not sampled(own)):
        return
    rounds, shards, _ = counts(own, stage)
    for number in range(1, rounds + 1):
        for step in ROUNDS[stage] if stage == "preference" else _sample_steps(own):
            for shard in range(shards):
                yield step, Part(number, shard)
        if number < rounds:
            yield stage, Part(number)


def counts(own: Config, stage: str) -> tuple[int, int, str]:
    """Rounds, shards and where the shards are set."""
    if stage == "preference":
        return own.preference.rounds, own.preference.sampling.shards, "preference.sampling.shards"
    return own.distill.rounds, own.distill.samples.shards, "distill.samples.shards"


def part_of(own: Config, step: str, part: Part | None) -> Part:
    """The part with its round filled in.

    Raises:
        InputError: a round or a shard that the configuration does not have.
    """
    stage = SHARDED.get(step, step)
    rounds, shards, key = counts(own, stage)
    part = part or Part()
    number = rounds if part.round is None else part.round
    if not 1 <= number <= rounds:
        raise InputError(f"step {step}: round {number} is not between 1 and {stage}.rounds ({rounds})")
    if not 0 <= part.shard < shards:
        raise InputError(f"step {step}: shard {part.shard} is not between 0 and {key} ({shards}) - 1")
    return Part(number, part.shard)


def preference_inputs(own: Config, step: str, variant: str, part: Part) -> dict[str, Path]:
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


def _sample_steps(own: Config) -> tuple[str, ...]:
    """The steps of a round of distillation: pairs are scored, token losses need the student's answers only where they train on them."""
    if on_pairs(own):
        return ROUNDS["distill"]
    return () if own.distill.samples.text == "teacher" else ("student_text",)


def distill_inputs(config: Config, own: Config, step: str, variant: str, part: Part) -> dict[str, Path]:
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


def with_part(own: Config, step: str, settings: dict[str, Any], part: Part) -> dict[str, Any]:
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
