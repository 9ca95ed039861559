"""Step `sample`: several answers of the tuned model to each temporal question of the training side; one job per shard."""

import logging

from moesaic.errors import InputError
from moesaic.evaluate.temporal import step as temporal_step
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.verify import prompt
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context, Result
from moesaic.generate import decode, sample
from moesaic.model.load import load_tokenizer
from moesaic.train import stage

log = logging.getLogger("moesaic.preference")
ANSWERS = "answers.jsonl"


def run(context: Context) -> Result:
    """Write `answers.jsonl`, one {id, prompt, answers: [{ids, finished, text}]} per question."""
    settings, own = context.settings["preference"], context.settings["preference"]["sampling"]
    model_step = context.inputs["model"]
    tokenizer = load_tokenizer(model_step.folder / "model")
    asked, long = [], 0
    for item in items(context.inputs["temporal"], settings["kinds"], settings["items"]):
        ids = sample.chat_prompt(tokenizer, prompt(item))
        if len(ids) > own["max_prompt"]:
            long += 1
        else:
            asked.append(sample.Prompt(item.id, ids))
    if not asked:
        raise InputError(
            f"preference.sampling.max_prompt: all {long} questions are longer than {own['max_prompt']} tokens"
        )
    plan = sample.Plan(
        decode.Decoding.of(own), own["answers"], context.settings["seed"] * 1000 + context.settings["round"], own["batch"],
        own["part"], context.settings["shard"], context.settings["shards"],
        own["engine"],
    )  # fmt: skip
    model = stage.load_stage_model(model_step).to(decode.device())
    digest, folder = sample.model_digest(model_step), model_step.folder / "model"
    records = sample.answer(
        model, tokenizer, digest, asked, plan, context.name, folder=folder, key="preference.sampling"
    )
    prompts = {item.id: item.ids for item in asked}
    files.write_lines(
        context.out / ANSWERS, [{**record, "prompt": prompts[record["id"]]} for record in records]
    )
    answers = [answer for record in records for answer in record["answers"]]
    finished = sum(answer["finished"] for answer in answers)
    log.info(
        "%s: %d answers to %d questions, %d of them finished",
        context.name,
        len(answers),
        len(records),
        finished,
    )
    metrics = {
        "questions": len(records), "answers": len(answers), "finished": finished, "tokens": sum(len(a["ids"]) for a in answers),
        "too_long": long,
    }  # fmt: skip
    return Result([ANSWERS], metrics)


def items(temporal: Manifest, kinds: list[str], per_task: int | None) -> list[Item]:
    """The training questions of these kinds, the first `per_task` of each task, in the order of the file.

    Raises:
        InputError: a missing or damaged file, or no question left.
    """
    manifest.verify(temporal, only=["train"])
    taken: dict[str, int] = {}
    found = []
    for item in temporal_step.read(temporal, "train"):
        if item.kind in kinds and (per_task is None or taken.get(item.task, 0) < per_task):
            taken[item.task] = taken.get(item.task, 0) + 1
            found.append(item)
    if not found:
        raise InputError(
            f"preference.kinds: {temporal.folder / 'train.jsonl'} holds no question of {', '.join(kinds)}"
        )
    return found
