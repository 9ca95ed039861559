"""Step `pair_scores`: the four log-probabilities and two lengths of each pair; one job per shard.

A pair is the i-th answer of the teacher (chosen) and of the student (rejected) to one question. Both texts are scored under both models, one model in
memory at a time, so that training needs no teacher. Pairs of equal texts say nothing, whatever the student does, and are left out and counted.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.distill import sampling, students
from moesaic.errors import InputError
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context, Result
from moesaic.generate import decode, sample, score
from moesaic.train import stage

log = logging.getLogger("moesaic.distill")
PAIRS = "pairs.jsonl"
SIDES = ("chosen", "rejected")


def run(context: Context) -> Result:
    """Write `pairs.jsonl`: {id, question, domain, prompt, chosen: {ids, logp, student, text}, rejected: the same}.

    `logp` is the teacher's log-probability of the answer's tokens, `student` that of the student that the round starts with, nats.

    Raises:
        InputError: answers to other questions, or models of different vocabularies.
    """
    vocabulary, other = (
        next(
            item.metrics["vocab_size"]
            for name, item in context.inputs.items()
            if name.startswith(f"{kind}-text-")
        )
        for kind in ("teacher", "student")
    )
    students.check_vocabularies(vocabulary, other)
    theirs, own = (answers(context.inputs, kind) for kind in ("teacher", "student"))
    pairs, same = paired(theirs, own, context.out)
    listed = [
        score.Scored(f"{pair['id']}#{side}", pair["prompt"], pair[side]["ids"])
        for pair in pairs
        for side in SIDES
    ]
    step = context.inputs["teacher-model"]
    model = stage.load_stage_model(step).to(decode.device())
    logps = [_scores(context, model, sample.model_digest(step), listed, "teacher")]
    del model  # never two of them on the device
    decode.free()
    model, digest = sampling.load_student(context)
    logps.append(_scores(context, model.to(decode.device()), digest, listed, "student"))
    for pair in pairs:
        for side in SIDES:
            key = f"{pair['id']}#{side}"
            pair[side] |= {"logp": logps[0][key], "student": logps[1][key]}
    files.write_lines(context.out / PAIRS, pairs)
    counts = {
        "pairs": len(pairs),
        "same": same,
        "teacher": sampling.count([answer for record in theirs for answer in record["answers"]]),
        "student": sampling.count([answer for record in own for answer in record["answers"]]),
        "nats": {
            f"{name}_of_{text}_text": round(sum(found[f"{pair['id']}#{side}"] for pair in pairs), 6)
            for name, found in zip(("teacher", "student"), logps, strict=True)
            for text, side in zip(("teacher", "student"), SIDES, strict=True)
        },
        "tokens": {
            text: sum(len(pair[side]["ids"]) for pair in pairs)
            for text, side in zip(("teacher", "student"), SIDES, strict=True)
        },
    }
    log.info("%s: %d pairs, %d of equal texts left out", context.name, len(pairs), same)
    return Result([PAIRS], {"vocab_size": vocabulary, "counts": counts})


def answers(inputs: Mapping[str, Manifest], kind: str) -> list[dict[str, Any]]:
    """Records of all shards of `teacher` or `student` answers among the inputs, in order of question ids."""
    records: list[dict[str, Any]] = []
    for name, step in inputs.items():
        if name.startswith(f"{kind}-text-"):
            manifest.verify(step)
            records += files.read_lines(step.folder / sampling.ANSWERS)
    return sorted(records, key=lambda record: record["id"])


def paired(
    theirs: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]], out: Path
) -> tuple[list[dict[str, Any]], int]:
    """Pairs without their scores, and how many were left out because both texts are the same."""
    mine = {record["id"]: record for record in own}
    if [record["id"] for record in theirs] != sorted(mine) or any(
        record["prompt"] != mine[record["id"]]["prompt"] for record in theirs
    ):
        raise InputError(
            f"{out}: teacher and student have answered other questions than each other; run teacher_text and student_text again, with one configuration"
        )
    found, same = [], 0
    for record in theirs:
        for index, (chosen, rejected) in enumerate(
            zip(record["answers"], mine[record["id"]]["answers"], strict=True)
        ):
            if chosen["ids"] == rejected["ids"]:
                same += 1
                continue
            found.append(
                {
                    "id": f"{record['id']}#{index}",
                    "question": record["id"],
                    "domain": record["source"],
                    "prompt": record["prompt"],
                    "chosen": {"ids": chosen["ids"], "text": chosen["text"]},
                    "rejected": {"ids": rejected["ids"], "text": rejected["text"]},
                }
            )
    return found, same


def _scores(
    context: Context, model: Any, digest: str, listed: Sequence[score.Scored], name: str
) -> dict[str, float]:
    batch = context.settings["score_batch"]
    made = score.score(model, digest, listed, batch, f"{context.name}: {name}")
    return {record["id"]: record["logp"] for record in made}
