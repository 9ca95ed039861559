"""Log-probabilities of given answers under a model: summed over the answer's tokens, with their number.

Shapes: I answers, B different sequences, T their longest length, N answer tokens, D model width.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic.evaluate.likelihood import target_nats
from moesaic.generate import parts
from moesaic.generate.decode import precision

VERSION = 1


@dataclass(frozen=True)
class Scored:
    """A prompt and an answer to it."""

    id: str
    prompt: list[int]
    answer: list[int]

    @functools.cached_property
    def read(self) -> tuple[int, ...]:
        """What the model reads: all but the last token. Answers that differ in that one alone share a sequence."""
        return (*self.prompt, *self.answer[:-1])


def score(
    model: Any, model_digest: str, items: Sequence[Scored], batch: int, name: str, part: int = 256, shard: int = 0, shards: int = 1,
    cache: Path = parts.CACHE,
) -> list[dict[str, Any]]:  # fmt: skip
    """Records {id, logp, tokens} of this shard's answers, in order: log p(answer | prompt) in nats, and the answer's tokens.

    Args:
        batch: sequences per forward pass (of answers that differ in their last token only: one for all). part: answers between two saved files.

    Raises:
        Interrupted: asked to stop; what was made is kept.
    """
    identity = {"what": "scores", "version": VERSION, "model": model_digest, "items": digest(items)}
    work = parts.Work(name, "answers", identity, [item.id for item in items], part, shard, shards, cache)

    def one(rows: range) -> list[dict[str, Any]]:
        shared: dict[tuple[int, ...], list[int]] = {}
        for i in rows:
            shared.setdefault(items[i].read, []).append(i)
        order = sorted(shared.values(), key=lambda group: (-len(items[group[0]].read), group[0]))
        found: dict[int, dict[str, Any]] = {}
        for begin in range(0, len(order), batch):
            group = [i for alike in order[begin : begin + batch] for i in alike]
            for i, value in zip(group, log_probabilities(model, [items[i] for i in group]), strict=True):
                found[i] = {"id": items[i].id, "logp": value, "tokens": len(items[i].answer)}
        return [found[i] for i in rows]

    return parts.make(work, one)


@torch.inference_mode()
def log_probabilities(model: Any, items: Sequence[Scored]) -> list[float]:
    """Summed log p(answer | prompt) of each item, nats; one forward pass, padded on the right."""
    where = model.device
    place = {read: b for b, read in enumerate(dict.fromkeys(item.read for item in items))}
    longest = max(map(len, place))
    ids_BT = np.zeros((len(place), longest), dtype=np.int64)
    mask_BT = np.zeros((len(place), longest), dtype=np.int64)
    for read, b in place.items():
        ids_BT[b, : len(read)], mask_BT[b, : len(read)] = read, 1
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for i, item in enumerate(items):
        assert item.prompt, "an answer needs a prompt: its first token is predicted from the prompt's last"
        assert item.answer, "an answer without tokens has no probability"
        rows += [place[item.read]] * len(item.answer)
        columns += range(len(item.prompt) - 1, len(item.read))
        targets += item.answer
        owners += [i] * len(item.answer)
    with precision(where):
        hidden_BTD = model.base_model(
            input_ids=torch.from_numpy(ids_BT).to(where),
            attention_mask=None if mask_BT.all() else torch.from_numpy(mask_BT).to(where),
            use_cache=False,
        ).last_hidden_state
        hidden_ND = hidden_BTD[torch.tensor(rows, device=where), torch.tensor(columns, device=where)]
        nats_N, _ = target_nats(model, hidden_ND, torch.tensor(targets, device=where))
    sums_I = torch.zeros(len(items), dtype=torch.float64, device=where)
    sums_I.index_add_(0, torch.tensor(owners, device=where), nats_N.double())
    return [-value for value in sums_I.tolist()]


def digest(items: Sequence[Scored]) -> str:
    """Digest of all tokens."""
    joined = hashlib.sha256()
    for item in items:
        joined.update(
            np.asarray(
                [len(item.prompt), len(item.answer), *item.prompt, *item.answer], dtype="<i8"
            ).tobytes()
        )
    return joined.hexdigest()
