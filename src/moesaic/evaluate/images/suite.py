"""Evaluation on held-out conversations with pictures: scores by modality, pictures beside their originals, a judge where one is asked for."""

import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic.data.images import codebook, judge, pictures, records, vocabulary
from moesaic.data.images.codebook import Codebook
from moesaic.data.images.records import Picture, Turn
from moesaic.data.sampler import Sample
from moesaic.errors import InputError
from moesaic.evaluate import bootstrap
from moesaic.evaluate.images import drawing, losses
from moesaic.flow import manifest
from moesaic.flow.manifest import Manifest
from moesaic.model.adapters.layout import ImageTokens
from moesaic.schema import IMAGES
from moesaic.train.streams import ChatStream

log = logging.getLogger("moesaic.evaluate")

Score = tuple[str, bootstrap.Estimate, float | None]
"""Metric, its estimate, what guessing gives."""


@dataclass(frozen=True)
class Asked:
    """An answer that is, or follows on, a picture."""

    record: int
    """Line of conversations.jsonl."""
    place: int
    """Of the picture in its record."""
    prompt: list[int]
    """Ids up to the answer (to describe) or up to the picture's begin token (to draw)."""
    codes: np.ndarray
    """[H, W]"""
    words: str
    """What the user asked (to draw) or the caption (to describe)."""


def run(
    model: Any, tokenizer: Any, settings: dict[str, Any], images: Manifest, chats: Manifest, seed: int, name: str
) -> tuple[list[Score], dict[str, Any]]:  # fmt: skip
    """Scores of the task `images`, and images.json: the pictures as PNG data, and facts that hold for every model.

    Args:
        settings: schema.Evaluate as a dict.

    Raises:
        InputError: the model has no image tokens, or others than the codebook; a judge that does not answer.
    """
    manifest.verify(images)
    tokens = vocabulary.of(tokenizer)
    if tokens is None or tokens.codes != images.metrics["codes"]:
        have = 0 if tokens is None else tokens.codes
        raise InputError(
            f"{name}: the model has {have} image codes, the codebook in {images.folder} {images.metrics['codes']}; run the dense step again"
        )
    held, train = ChatStream(chats, "validation"), ChatStream(chats, "train")
    known = held.sizes.get(IMAGES, 0)
    if not known:
        raise InputError(
            f"{chats.folder}: no held-out conversation with pictures; raise data.chat.validation"
        )
    count = min(known, settings["conversations"] or known)
    found = losses.measure(model, tokens, held, count, settings["batch"], f"{name}: pictures")
    scores = _scores(found, settings["bootstrap"], seed)
    facts: dict[str, Any] = {"unigram_nats": _rounded(losses.unigram_nats(tokens, train, held, count))}
    facts |= {"codes": tokens.codes, "grid": images.metrics["grid"], "conversations": count}
    book = codebook.load(images.folder)
    chosen = asked(held, tokens, images.folder, settings["pictures"])
    drawn, judged = _drawn(model, tokenizer, tokens, chosen[0], images.folder, book, seed, settings["judge"])
    scores += [
        (f"judge: {aspect}", bootstrap.mean(np.array(values), settings["bootstrap"], bootstrap.generator(seed, aspect)), None)
        for aspect, values in judged.items()
        if values
    ]  # fmt: skip
    if judged:
        facts["unjudged"] = sum(len(drawn) - len(values) for values in judged.values())
    facts |= {"drawn": drawn, "described": _described(model, tokenizer, chosen[1], images.folder)}
    return scores, facts


def asked(held: ChatStream, tokens: ImageTokens, folder: Path, most: int) -> tuple[list[Asked], list[Asked]]:
    """The first pictures among the held-out conversations that are to be drawn, and those that are to be described; `most` of each."""
    draw: list[Asked] = []
    describe: list[Asked] = []
    numbers = [int(item.rsplit(":", 1)[1]) for item in held.sets[IMAGES].ids]
    for row, number in enumerate(numbers):
        if len(draw) >= most and len(describe) >= most:
            break
        (one,) = held.rows([Sample(IMAGES, row)])
        ids, turns = one.ids, _record(folder, number)
        begins = [i for i, token in enumerate(ids) if int(token) in tokens.grids]
        place = -1
        # the turns tell who shows a picture; the ids where it stands
        for turn, message in enumerate(turns):
            inside = len(vocabulary.parse(message["content"]))
            for i in range(inside):
                place += 1
                begin = begins[place]
                rows, columns = tokens.grids[int(ids[begin])]
                codes = ids[begin + 1 : begin + 1 + rows * columns].reshape(rows, columns) - tokens.first
                if message["role"] == "assistant" and i == 0 and len(draw) < most:
                    words = vocabulary.PICTURE.sub("", turns[turn - 1]["content"]).strip()
                    draw.append(Asked(number, place, ids[: begin + 1].tolist(), codes, words))
                answer = turns[turn + 1]["content"] if turn + 1 < len(turns) else ""
                last = message["role"] == "user" and i == inside - 1
                if last and not vocabulary.PICTURE.search(answer) and len(describe) < most:
                    first = _first_target(one.targets, begin)
                    describe.append(Asked(number, place, ids[: first + 1].tolist(), codes, answer))
    return draw, describe


def _first_target(targets: np.ndarray, begin: int) -> int:
    """The position that predicts the first token of the answer after a picture."""
    return begin + int(np.argmax(targets[begin:] >= 0))


def _record(folder: Path, number: int) -> list[dict[str, str]]:
    """One conversation of the images step."""
    with (folder / records.NAME).open(encoding="utf-8") as file:
        line = next(itertools.islice(file, number, None))
    found: list[dict[str, str]] = json.loads(line)["messages"]
    return [turn for turn in found if turn["role"] != "system"]


def _scores(found: losses.Losses, resamples: int, seed: int) -> list[Score]:
    out: list[Score] = []
    columns = (
        ("image_nats", found.image_nats_N, found.image_tokens_N, None),
        ("grid_accuracy", found.image_right_N, found.image_tokens_N, found.commonest),
        ("text_nats", found.text_nats_N, found.text_tokens_N, None),
    )
    for metric, top_N, bottom_N, chance in columns:
        if bottom_N.sum():
            rng = bootstrap.generator(seed, f"images/{metric}")
            some = bottom_N > 0
            out.append((metric, bootstrap.ratio(top_N[some], bottom_N[some], resamples, rng), chance))
    return out


def _drawn(
    model: Any, tokenizer: Any, tokens: ImageTokens, chosen: Sequence[Asked], folder: Path, book: Codebook, seed: int, endpoint: dict[str, Any] | None,
) -> tuple[list[dict[str, str]], dict[str, list[float]]]:  # fmt: skip
    """Each picture as it was, as its codes keep it, as the model draws it (likeliest codes; codes by chance), and the judge's scores of the last."""
    if not chosen:
        return [], {}
    pad = tokenizer.pad_token_id or 0
    (rows, columns) = chosen[0].codes.shape
    prompts = [item.prompt for item in chosen]
    likeliest = drawing.draw(model, tokens, prompts, (rows, columns), pad, None)
    chance = torch.Generator().manual_seed(seed)
    sampled = drawing.draw(model, tokens, prompts, (rows, columns), pad, chance)
    out = []
    judged: dict[str, list[float]] = {}
    ask = _judge(endpoint)
    for item, greedy, by_chance in zip(chosen, likeliest, sampled, strict=True):
        original = pictures.load(folder, item.record)[item.place]
        shown = {"original": original, "codes": book.decode(item.codes), "drawn": book.decode(greedy), "sampled": book.decode(by_chance)}  # fmt: skip
        out.append({"words": item.words} | {key: pictures.data_url(value) for key, value in shown.items()})
        if ask is not None:
            record = (
                Turn("user", (item.words,)),
                Turn("assistant", (Picture(Path(), book.decode(by_chance)),)),
            )
            for aspect in judge.ASPECTS:
                try:
                    judged.setdefault(aspect, []).append(ask(aspect, record))
                except judge.Unreadable as error:
                    log.warning("%s; the picture has no score for %s", error, aspect)
    return out, judged


def _described(model: Any, tokenizer: Any, chosen: Sequence[Asked], folder: Path) -> list[dict[str, str]]:
    if not chosen:
        return []
    texts = drawing.describe(model, tokenizer, [item.prompt for item in chosen])
    return [
        {
            "original": pictures.data_url(pictures.load(folder, item.record)[item.place]),
            "caption": item.words,
            "text": text,
        }
        for item, text in zip(chosen, texts, strict=True)
    ]


def _judge(endpoint: dict[str, Any] | None) -> records.Judge | None:
    if endpoint is None:
        return None
    return judge.endpoint(endpoint["url"], endpoint["model"], os.environ.get(endpoint["key_variable"], ""))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
