"""Step `rate`: split a shard's answers by the verifier, rate them with the model's own critic, choose a pair per question, and take the
reference model's log-probabilities of it, so that training needs no second model in memory.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.verify import prompt, verify
from moesaic.flow import files
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context, Result
from moesaic.generate import decode, sample, score
from moesaic.model.load import load_tokenizer
from moesaic.preference import choose, rubric, sampling
from moesaic.preference.choose import Candidate
from moesaic.train import stage

log = logging.getLogger("moesaic.preference")
PAIRS, RATED, STATS = "pairs.jsonl", "rated.jsonl", "stats.json"
KINDS = ("math-time", "pure-time")


def run(context: Context) -> Result:
    """Write `pairs.jsonl` (train/pairs.py), `rated.jsonl` (every answer with verdict and ratings) and `stats.json` (where every question went)."""
    settings = context.settings["preference"]
    mode = settings["pairs"]
    by_id = {item.id: item for item in sampling.items(context.inputs["temporal"], list(KINDS), None)}
    records = files.read_lines(context.inputs["answers"].folder / sampling.ANSWERS)
    model_step, reference_step = (
        context.inputs["model"],
        context.inputs.get("reference", context.inputs["model"]),
    )
    tokenizer = load_tokenizer(model_step.folder / "model")
    model = stage.load_stage_model(model_step).to(decode.device())
    found = {record["id"]: judged(by_id[record["id"]], record["answers"]) for record in records}
    both = {name: sides for name, sides in found.items() if all(_sides(sides))}
    if mode in choose.RATED:
        _rate(context, tokenizer, model, {name: by_id[name] for name in both}, both)
    if mode in choose.SCORED:
        prompts = {record["id"]: record["prompt"] for record in records}
        _score(context, model, prompts, both)
    chosen: dict[str, tuple[Candidate, Candidate]] = {}
    for name, candidates in both.items():
        right, wrong = _sides(candidates)
        generator = np.random.default_rng(sample.seed_of(context.settings["seed"], name, -1))
        pair = choose.METHODS[mode](right, wrong, generator)
        if pair is not None:
            chosen[name] = pair
    if reference_step is not model_step:
        del model  # never two of them on the device
        decode.free()
        model = stage.load_stage_model(reference_step).to(decode.device())
    pairs = _pairs(context, model, reference_step, by_id, records, chosen)
    files.write_lines(context.out / PAIRS, pairs)
    listed = [
        {"id": name, "answers": [_record(item) for item in candidates]} for name, candidates in found.items()
    ]
    files.write_lines(context.out / RATED, listed)
    counts = stats(by_id, records, found, chosen)
    files.write_json(context.out / STATS, counts)
    log.info("%s: %s", context.name, words(counts))
    return Result([PAIRS, RATED, STATS], {"vocab_size": model.config.vocab_size, "counts": counts})


def judged(item: Item, answers: list[dict[str, Any]]) -> list[Candidate]:
    """The different answers to a question with the verifier's verdicts; one that was cut off before its end is never right."""
    return choose.unique(
        [
            Candidate(
                draw,
                answer["ids"],
                answer["text"],
                answer["finished"],
                answer["finished"] and verify(item, answer["text"]),
            )
            for draw, answer in enumerate(answers)
        ]
    )


def stats(
    by_id: dict[str, Item],
    records: list[dict[str, Any]],
    found: dict[str, list[Candidate]],
    chosen: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Kind -> counts. questions = pairs + no_right + no_wrong + unrated; shares follow from `answers` and `right`."""
    out: dict[str, Counter[str]] = {}
    for record in records:
        item, candidates = by_id[record["id"]], found[record["id"]]
        counts = out.setdefault(item.kind, Counter())
        right, wrong = _sides(candidates)
        correct = {candidate.text for candidate in right}
        counts["questions"] += 1
        counts["answers"] += len(record["answers"])
        counts["right"] += sum(
            answer["finished"] and answer["text"] in correct for answer in record["answers"]
        )
        counts["different"] += len(candidates)
        reason = (
            "pairs"
            if record["id"] in chosen
            else "no_right"
            if not right
            else "no_wrong"
            if not wrong
            else "unrated"
        )
        counts[reason] += 1
        ratings = [value for candidate in candidates for value in candidate.ratings]
        counts["ratings"] += len(ratings)
        counts["unparsable"] += ratings.count(None)
    names = (
        "questions",
        "answers",
        "right",
        "different",
        "pairs",
        "no_right",
        "no_wrong",
        "unrated",
        "ratings",
        "unparsable",
    )
    return {kind: {name: counts[name] for name in names} for kind, counts in sorted(out.items())}


def words(counts: dict[str, dict[str, Any]]) -> str:
    """The counts in a line for the log."""
    total = Counter[str]()
    for one in counts.values():
        total.update(one)
    text = (
        f"{total['pairs']} pairs of {total['questions']} questions ({total['no_right']} without a right answer, {total['no_wrong']} without a "
        f"wrong one, {total['unrated']} unrated); {total['right']} of {total['answers']} answers are right"
    )
    return text + (
        f"; {total['unparsable']} of {total['ratings']} ratings hold no score" if total["ratings"] else ""
    )


def _sides(candidates: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    return [item for item in candidates if item.right], [item for item in candidates if not item.right]


def _rate(
    context: Context, tokenizer: Any, model: Any, by_id: dict[str, Item], both: dict[str, list[Candidate]]
) -> None:
    """Fill in `ratings`: several sampled ones per answer, or an expected one."""
    own = context.settings["preference"]["rubric"]
    template = rubric.load(own["text"], own["template"] or rubric.BUILT_IN.name)
    asked = []
    for name, candidates in both.items():
        for item in candidates:
            words = template["right" if item.right else "wrong"]
            ids = sample.chat_prompt(tokenizer, rubric.fill(words, prompt(by_id[name]), item.text))
            asked.append(sample.Prompt(_key(name, item), ids))
    digest = sample.model_digest(context.inputs["model"])
    if own["read"] == "expected":
        by_key = _expected(tokenizer, model, digest, asked, own["batch"], context.name)
    else:
        plan = sample.Plan(
            decode.Decoding.of(own), own["ratings"], context.settings["seed"], own["batch"], own["part"],
            engine=own["engine"],
        )  # fmt: skip
        rated = sample.answer(
            model, tokenizer, digest, asked, plan, f"{context.name}: critic", folder=context.inputs["model"].folder / "model",
            key="preference.rubric",
        )  # fmt: skip
        by_key = {
            record["id"]: [rubric.parse(answer["text"]) for answer in record["answers"]] for record in rated
        }
    for name, candidates in both.items():
        for item in candidates:
            item.ratings = by_key[_key(name, item)]


def _expected(
    tokenizer: Any, model: Any, digest: str, asked: Sequence[sample.Prompt], batch: int, name: str
) -> dict[str, list[float | None]]:
    """One rating per prompt: the mean score under the model's probabilities of the scores."""
    start, scores = rubric.endings(tokenizer)
    listed = [
        score.Scored(f"{item.id}={value}", [*item.ids, *start], ids)
        for item in asked
        for value, ids in enumerate(scores)
    ]
    found = score.score(model, digest, listed, batch, f"{name}: critic")
    logp = [record["logp"] for record in found]
    count = len(scores)
    return {item.id: [rubric.expected(logp[i * count : (i + 1) * count])] for i, item in enumerate(asked)}


def _score(
    context: Context, model: Any, prompts: dict[str, list[int]], both: dict[str, list[Candidate]]
) -> None:
    """Fill in `logp` under the model that sampled."""
    every = [(name, item) for name, candidates in both.items() for item in candidates]
    listed = [score.Scored(_key(name, item), prompts[name], item.ids) for name, item in every]
    digest, batch = (
        sample.model_digest(context.inputs["model"]),
        context.settings["preference"]["score_batch"],
    )
    scored = score.score(model, digest, listed, batch, f"{context.name}: own likelihood")
    by_key = {record["id"]: record["logp"] for record in scored}
    for name, item in every:
        item.logp = by_key[_key(name, item)]


def _pairs(
    context: Context, model: Any, reference: Manifest, by_id: dict[str, Item], records: list[dict[str, Any]],
    chosen: dict[str, tuple[Candidate, Candidate]],
) -> list[dict[str, Any]]:  # fmt: skip
    """The pair file's records, with the reference model's log-probabilities."""
    prompts = {record["id"]: record["prompt"] for record in records}
    listed = [
        score.Scored(_key(name, item), prompts[name], item.ids)
        for name, pair in chosen.items()
        for item in pair
    ]
    batch = context.settings["preference"]["score_batch"]
    scored = score.score(model, sample.model_digest(reference), listed, batch, f"{context.name}: reference")
    by_key = {record["id"]: record["logp"] for record in scored}

    def side(name: str, item: Candidate) -> dict[str, Any]:
        return {"ids": item.ids, "logp": by_key[_key(name, item)], "text": item.text, "rating": item.rating}

    return [
        {
            "id": name, "domain": by_id[name].kind, "task": by_id[name].task, "prompt": prompts[name],
            "chosen": side(name, pair[0]), "rejected": side(name, pair[1]),
        }
        for name, pair in chosen.items()
    ]  # fmt: skip


def _key(name: str, item: Candidate) -> str:
    return f"{name}#{item.draw}"


def _record(item: Candidate) -> dict[str, Any]:
    return {"draw": item.draw, "text": item.text, "right": item.right, "ratings": item.ratings}
