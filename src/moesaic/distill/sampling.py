"""Steps `teacher_text` and `student_text`: answers to the questions of the instruction data; one job per shard.

The teacher answers once: its texts are named by the teacher, the questions and the decoding, and shared by all rounds, losses and variants. The
student answers anew in each round. Both write `answers.jsonl`, one {id, source, prompt, answers: [{ids, finished, text}]} per question.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moesaic import config
from moesaic.data import questions
from moesaic.distill import students
from moesaic.flow import files
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context, Result
from moesaic.generate import decode, sample
from moesaic.model.load import load_tokenizer
from moesaic.train import stage
from moesaic.train.streams import ChatStream

log = logging.getLogger("moesaic.distill")
ANSWERS = "answers.jsonl"
GRAM = 4
"""Tokens in a row that count as repeated."""


def teacher(context: Context) -> Result:
    """The teacher's answers, of one shard."""
    step = context.inputs["teacher-model"]
    model = stage.load_stage_model(step)
    return _answers(context, model, sample.model_digest(step), step, 0, step.folder / "model")


def student(context: Context) -> Result:
    """The student's answers in one round, of one shard."""
    model, digest = load_student(context)
    step = context.inputs["student"]
    folder = None if context.settings["student"] else step.folder / "model"  # None: cut out of it, in memory
    return _answers(context, model, digest, step, context.settings["round"], folder)


def load_student(context: Context) -> tuple[Any, str]:
    """The student as the round starts with it, and what names it in the cache.

    In the first round it is cut out of its model (`student` in the settings; the neurons of a narrower FFN are chosen on the conversations), in the others
    it comes from the round before (null).
    """
    step, own = context.inputs["student"], context.settings["student"]
    model, digest = stage.load_stage_model(step), sample.model_digest(step)
    if own is None:
        return model, digest
    made = students.make(model, own, ChatStream(context.inputs["chat"], "train"))
    chosen_on = [sample.model_digest(context.inputs["chat"])] if own["ffn"] is not None else []
    return made, config.digest([digest, own, *chosen_on])


def _answers(
    context: Context, model: Any, digest: str, step: Manifest, round_number: int, folder: Path | None
) -> Result:
    own, where = context.settings["samples"], context.settings
    found, long = questions.read(
        context.inputs["chat"], "train", own["sources"], own["prompts"], own["max_prompt"]
    )
    prompts = [sample.Prompt(item.id, item.prompt) for item in found]
    plan = sample.Plan(
        decode.Decoding.of(own), own["answers"], where["seed"] * 1000 + round_number, own["batch"], own["part"], where["shard"],
        where["shards"], own["engine"],
    )  # fmt: skip
    tokenizer = load_tokenizer(step.folder / "model")
    model = model.to(decode.device())
    made = sample.answer(
        model, tokenizer, digest, prompts, plan, context.name, folder=folder, key="distill.samples"
    )
    by_id = {item.id: item for item in found}
    records = [
        {**record, "source": by_id[record["id"]].source, "prompt": by_id[record["id"]].prompt}
        for record in made
    ]
    files.write_lines(context.out / ANSWERS, records)
    counts = count([answer for record in records for answer in record["answers"]])
    log.info(
        "%s: %d answers to %d questions, %d of them finished, %.0f tokens each, %.1f %% of their %d-grams repeated",
        context.name,
        counts["answers"],
        len(records),
        counts["finished"],
        counts["tokens"] / max(1, counts["answers"]),
        100 * counts["repeated"] / max(1, counts["grams"]),
        GRAM,
    )
    told = {"questions": len(records), "too_long": long, "vocab_size": model.config.vocab_size}
    return Result([ANSWERS], told | {"counts": counts})


def count(answers: Sequence[dict[str, Any]]) -> dict[str, int]:
    """answers, finished, tokens, and of their GRAM-grams how many there are and how many stood in the same answer before."""
    found = Counter[str]()
    for answer in answers:
        again, grams = repetition(answer["ids"])
        found.update(
            {
                "answers": 1,
                "finished": int(answer["finished"]),
                "tokens": len(answer["ids"]),
                "repeated": again,
                "grams": grams,
            }
        )
    return {name: found[name] for name in ("answers", "finished", "tokens", "repeated", "grams")}


def repetition(ids: Sequence[int]) -> tuple[int, int]:
    """GRAM-grams of a text that stood in it before, and all of them."""
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return len(grams) - len(set(grams)), len(grams)
