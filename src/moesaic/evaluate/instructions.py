"""Answers to held-out instructions: ROUGE-L and exact match by length of the reference, over several decoding seeds, development and test apart.

As the distillation papers measure it (MiniLLM, arXiv 2306.08543; DPKD, arXiv 2406.19774): sampled answers, ROUGE-L F1 with stemming times 100, exact
match after lower-casing and without punctuation. Both sides come from the validation side of the instruction data, which no stage trains on: half of
its questions, by a digest of the question alone, are for choosing (`dev`), the others for what is reported (`test`).

Shapes: N questions, S decoding seeds.
"""

import hashlib
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.data import questions
from moesaic.data.questions import Question
from moesaic.distill import sampling
from moesaic.errors import InputError
from moesaic.evaluate import bootstrap
from moesaic.evaluate.harness import Metric, TaskScores
from moesaic.evaluate.sides import BINS, NAME, SIDES
from moesaic.flow import files
from moesaic.flow.manifest import Manifest
from moesaic.generate import decode, sample

ANSWERS = "instructions.jsonl"
PUNCTUATION = str.maketrans("", "", string.punctuation)


def run(
    model: Any, tokenizer: Any, settings: dict[str, Any], digest: str, chats: Manifest, out: Path, seed: int, name: str
) -> list[TaskScores]:  # fmt: skip
    """Answer, score, write `instructions.jsonl` ({id, side, reference, answers}).

    Tasks `instructions_dev`, `instructions_test` and each with `_short`, `_medium`, `_long`. Per question the mean over the seeds counts; its interval
    is over the questions. `rougeL_by_seed` is the same mean with Student's interval over the seeds: what decoding alone moves.

    Args:
        settings: schema.Evaluate as a dict. digest: what names the model in the cache. chats: the chat step. seed: of the decoding and of the resamples.

    Raises:
        InputError: no question on a side, a damaged file, an answer that does not fit into the context.
    """
    own = settings["instructions"]
    found, _ = questions.read(
        chats, "validation", own["sources"], None, own["max_prompt"], "evaluate.instructions"
    )
    chosen = {side: _first([item for item in found if side_of(item) == side], own["items"]) for side in SIDES}
    for side, items in chosen.items():
        if not items:
            raise InputError(
                f"evaluate.instructions: none of the {len(found)} held-out questions is on the side {side}; raise data.chat.validation or add conversations"
            )
    asked = [sample.Prompt(item.id, item.prompt) for items in chosen.values() for item in items]
    plan = sample.Plan(decode.Decoding.of(own), own["seeds"], seed, own["batch"], own["part"])
    made = sample.answer(
        model, tokenizer, digest, asked, plan, f"{name}: instructions", key="evaluate.instructions"
    )
    answers = {record["id"]: record["answers"] for record in made}
    tasks, written = [], []
    for side, items in chosen.items():
        references = [tokenizer.decode(item.answer, skip_special_tokens=True) for item in items]
        told = [answers[item.id] for item in items]
        tasks += score(side, items, references, told, settings["bootstrap"], seed)
        written += [
            {"id": item.id, "side": side, "reference": reference, "answers": [one["text"] for one in texts]}
            for item, reference, texts in zip(items, references, told, strict=True)
        ]
    files.write_lines(out / ANSWERS, written)
    return tasks


def side_of(item: Question) -> str:
    """dev or test, from the question alone: equal questions are never on both sides."""
    data = np.asarray(item.prompt, dtype="<i4").tobytes()
    return SIDES[hashlib.blake2b(data, digest_size=1).digest()[0] % 2]


def score(
    side: str, items: Sequence[Question], references: Sequence[str], answers: Sequence[Sequence[dict[str, Any]]], resamples: int, seed: int
) -> list[TaskScores]:  # fmt: skip
    """Scores of one side: the whole of it, then by length of the reference (bins without a question are left out)."""
    texts = [[one["text"] for one in told] for told in answers]
    rouge_NS = np.array(
        [[rouge_l(r, text) for text in told] for r, told in zip(references, texts, strict=True)]
    )
    exact_NS = np.array(
        [[exact(r, text) for text in told] for r, told in zip(references, texts, strict=True)]
    )
    name = f"{NAME}_{side}"
    keys = [
        hashlib.blake2b(f"{item.prompt}{reference}".encode(), digest_size=8).hexdigest()
        for item, reference in zip(items, references, strict=True)
    ]

    def means(task: str, values: dict[str, np.ndarray]) -> list[Metric]:
        found = []
        for key, value in values.items():
            rng = bootstrap.generator(seed, f"{task}/{key}")
            estimate = bootstrap.mean(value, resamples, rng, rate=key == "exact_match")
            found.append(Metric(key, estimate, None))
        return found

    whole = {
        "rougeL": rouge_NS.mean(1), "exact_match": exact_NS.mean(1), "tokens": _mean(answers, lambda one: len(one["ids"])),
        "finished": _mean(answers, lambda one: one["finished"]), "repetition": _mean(answers, _repeated),
    }  # fmt: skip
    by_seed = Metric("rougeL_by_seed", bootstrap.student(rouge_NS.mean(0)), None)
    found = [TaskScores(name, [*means(name, whole), by_seed], whole, keys, False)]
    words_N = np.array([len(reference.split()) for reference in references])
    for label, least, most in BINS:
        where_N = (words_N >= least) & (words_N <= most)
        if where_N.any():
            task = f"{name}_{label}"
            values = {key: whole[key][where_N] for key in ("rougeL", "exact_match")}
            mine = [key for key, inside in zip(keys, where_N, strict=True) if inside]
            found.append(TaskScores(task, means(task, values), values, mine, False))
    return found


def rouge_l(reference: str, text: str) -> float:
    """ROUGE-L F1 of a text, times 100, stemmed (Google's rouge-score: Latin letters and digits only)."""
    return 100 * float(_scorer().score(reference, text)["rougeL"].fmeasure)


def exact(reference: str, text: str) -> float:
    """1 where both are equal after lower-casing, without punctuation and doubled spaces; articles stay."""
    return float(plain(reference) == plain(text))


def plain(text: str) -> str:
    """What exact match compares."""
    return " ".join(text.lower().translate(PUNCTUATION).split())


_SCORERS: list[Any] = []


def _scorer() -> Any:
    if not _SCORERS:
        from rouge_score import rouge_scorer

        _SCORERS.append(rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True))
    return _SCORERS[0]


def _repeated(one: dict[str, Any]) -> float:
    again, grams = sampling.repetition(one["ids"])
    return again / grams if grams else 0.0


def _mean(answers: Sequence[Sequence[dict[str, Any]]], value: Any) -> np.ndarray:
    return np.array([np.mean([float(value(one)) for one in told]) for told in answers])


def _first(items: list[Question], per_source: int | None) -> list[Question]:
    taken: dict[str, list[Question]] = {}
    for item in items:
        taken.setdefault(item.source, []).append(item)
    return [item for mine in taken.values() for item in mine[:per_source]]
