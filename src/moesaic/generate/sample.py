"""Several answers to each of many prompts, as records that survive a kill (parts.py)."""

import contextlib
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from moesaic import config
from moesaic.data import chat_template
from moesaic.errors import InputError
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.generate import parts
from moesaic.generate.decode import Decoding, check_context, end_tokens
from moesaic.generate.engines import ENGINES, Engine

VERSION = 1
"""Raised when the same settings give other answers."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked."""

    id: str
    """Unique in a list."""
    ids: list[int]


@dataclass(frozen=True)
class Plan:
    """How a list of prompts is answered."""

    decoding: Decoding
    draws: int
    """Answers to each prompt."""
    seed: int
    batch: int
    """Sequences decoded at once; it changes nothing but rounding."""
    part: int = 64
    """Prompts between two saved files."""
    shard: int = 0
    shards: int = 1
    engine: str = "transformers"
    """What decodes (engines.py)."""


def chat_prompt(tokenizer: Any, question: str) -> list[int]:
    """Token ids of a user's turn and the beginning of the answer, as the chat step renders them for training.

    Raises:
        InputError: the tokenizer has no chat template, or one that refuses a question without a system prompt.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "model.chat_template: the model's tokenizer has no chat template; give a Jinja file (ChatML, for example)"
        )
    try:
        return chat_template.render([{"role": "user", "content": question}], tokenizer, prompt=True)
    except jinja2.TemplateError as error:
        raise InputError(f"model.chat_template: it refuses a lone question ({error})") from error


def answer(
    model: Any, tokenizer: Any, model_digest: str, prompts: Sequence[Prompt], plan: Plan, name: str,
    cache: Path = parts.CACHE, folder: Path | None = None, key: str = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """Records {id, answers: [{ids, finished, text}]} of this shard's prompts, in order.

    Args:
        model_digest: of the model's manifest; with the prompts and the decoding it names the answers.
        folder: the model's checkpoint, for an engine that reads it; None: it is in memory only.
        key: section of the configuration that this is, for messages.

    Raises:
        Interrupted: asked to stop; what was made is kept. InputError: see decode.decode and engine_vllm.Vllm.
    """
    if not prompts:
        return []
    ends = end_tokens(model, tokenizer)
    identity = {
        "what": "answers", "version": VERSION, "model": model_digest, "decoding": asdict(plan.decoding), "draws": plan.draws,
        "seed": plan.seed, "prompts": digest(prompts),
    }  # fmt: skip
    if plan.engine != "transformers":
        identity["engine"] = plan.engine
    if ends != {tokenizer.eos_token_id}:
        identity["ends"] = sorted(ends)
    keys = [prompt.id for prompt in prompts]
    longest = max(len(prompt.ids) for prompt in prompts)
    # now, and not when the longest one's turn comes
    check_context(model, longest, plan.decoding.new_tokens, key)
    engine: Engine = ENGINES[plan.engine](model, folder, longest, plan.decoding.new_tokens, plan.batch)
    work = parts.Work(name, "prompts", identity, keys, plan.part, plan.shard, plan.shards, cache)

    def one(rows: range) -> list[dict[str, Any]]:
        # Prompts of like length together, so that little is padded; a piece is always decoded as a whole, in the same batches.
        order = sorted(rows, key=lambda i: (-len(prompts[i].ids), i))
        each = len(order) if engine.whole else max(1, plan.batch // plan.draws)
        drawn = plan.draws if engine.whole else min(plan.draws, plan.batch)  # of one prompt at once
        found: dict[int, dict[str, Any]] = {}
        for begin in range(0, len(order), each):
            group = order[begin : begin + each]
            seeds = [[seed_of(plan.seed, prompts[i].id, draw) for draw in range(plan.draws)] for i in group]
            texts = [prompts[i].ids for i in group]
            made = [
                engine.decode(texts, [own[first : first + drawn] for own in seeds], plan.decoding, ends)
                for first in range(0, plan.draws, drawn)
            ]
            for i, *some in zip(group, *made, strict=True):
                answers = itertools.chain.from_iterable(some)
                listed = [
                    {"ids": item.ids, "finished": item.finished, "text": tokenizer.decode(item.ids, skip_special_tokens=True)}
                    for item in answers
                ]  # fmt: skip
                found[i] = {"id": prompts[i].id, "answers": listed}
        return [found[i] for i in rows]

    with contextlib.closing(engine):
        return parts.make(work, one)


def seed_of(seed: int, prompt: str, draw: int) -> int:
    """The seed of one answer: of the run, the prompt's id and the draw, and of nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{draw}:{prompt}".encode(), digest_size=16).digest(), "big")


def digest(prompts: Sequence[Prompt]) -> str:
    """Digest of the prompts' tokens."""
    joined = hashlib.sha256()
    for prompt in prompts:
        joined.update(config.digest(prompt.id).encode())
        joined.update(np.asarray([len(prompt.ids), *prompt.ids], dtype="<i8").tobytes())
    return joined.hexdigest()


def model_digest(step: Manifest) -> str:
    """What names a model in the cache: its manifest, which holds the digests of its files and of all it was made from."""
    return files.sha256(step.folder / manifest.NAME)
