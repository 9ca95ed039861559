"""Training data as rows of token ids and targets, by domain: packed text, or conversations with a loss mask."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from moesaic.data import chat_sets, packed
from moesaic.data.sampler import Sample
from moesaic.distill import cache
from moesaic.errors import InputError
from moesaic.flow import manifest
from moesaic.flow.manifest import Manifest
from moesaic.train.objectives import IGNORE, Batch


class Row(NamedTuple):
    """One sequence."""

    ids: np.ndarray
    """Token ids [T]."""
    targets: np.ndarray
    """The next token at each position, or IGNORE [T]."""
    positions: np.ndarray | None = None
    """Place of each token in its document [T]; None: the row is one document."""
    taught: Callable[[], cache.CachedRow] | None = None
    """Reads what an offline teacher says at the row's targets."""


class Stream(Protocol):
    """Random access to the rows of every domain."""

    sizes: dict[str, int]

    def rows(self, samples: Sequence[Sample]) -> list[Row]: ...


class TextStream:
    """Packed blocks of the corpus; a target at every position but the last."""

    def __init__(
        self, tokens: Manifest, split: str, held_out: Sequence[str] = (), document_mask: bool = False
    ):
        """Args: document_mask: tokens see only their own document; positions begin anew with each."""
        self.document_mask = document_mask
        names = [name for name in packed.domains(tokens) if name not in held_out]
        if not names:
            raise InputError("data.domains: every domain is held out, none is left to train on")
        manifest.verify(tokens, only=[f"{name}.{split}" for name in names])
        self.blocks = {name: packed.open_blocks(tokens, name, split) for name in names}
        self.sizes = {name: len(blocks) for name, blocks in self.blocks.items()}

    def rows(self, samples: Sequence[Sample]) -> list[Row]:
        found = []
        for sample in samples:
            blocks = self.blocks[sample.domain]
            ids = blocks.tokens([sample.row])[0]
            positions = places(blocks.starts(sample.row), len(ids)) if self.document_mask else None
            found.append(Row(ids, np.append(ids[1:], IGNORE), positions))
        return found


class ChatStream:
    """Conversations; a target where the next token belongs to an answer."""

    def __init__(self, chats: Manifest, split: str):
        manifest.verify(chats, only=[split])
        self.sets = chat_sets.open_chat(chats, split)
        self.sizes = {name: len(items) for name, items in self.sets.items() if len(items)}

    def rows(self, samples: Sequence[Sample]) -> list[Row]:
        found = []
        for sample in samples:
            ids, mask = self.sets[sample.domain][sample.row]
            ids = np.asarray(ids)
            found.append(Row(ids, np.append(np.where(np.asarray(mask)[1:] == 1, ids[1:], IGNORE), IGNORE)))
        return found


class TaughtStream:
    """A stream whose rows know what an offline teacher says of them; only the rows that the cache has."""

    def __init__(self, stream: Stream, cached: cache.Cache, split: str):
        self.stream, self.cached, self.split = stream, cached, split
        self.sizes = cached.sizes(split, stream.sizes)

    def rows(self, samples: Sequence[Sample]) -> list[Row]:
        return [
            row._replace(taught=self.cached.reader(self.split, sample, row.ids, row.targets))
            for sample, row in zip(samples, self.stream.rows(samples), strict=True)
        ]


def places(starts: np.ndarray, length: int) -> np.ndarray:
    """Place of each token in its document [T], from the positions at which documents start; a cut document counts from the block's start."""
    begins = np.zeros(length, dtype=np.int64)
    begins[starts] = starts
    return np.arange(length) - np.maximum.accumulate(begins)


def collate(
    rows: Sequence[Row], domains: list[str], step_targets: int, share: float, device: torch.device
) -> Batch:
    """Pad to the longest row (to the right) and move to the device; without padding there is no mask."""
    longest = max(len(row.ids) for row in rows)
    ids_BT = np.zeros((len(rows), longest), dtype=np.int64)
    targets_BT = np.full((len(rows), longest), IGNORE, dtype=np.int64)
    mask_BT = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids_BT[i, :length], targets_BT[i, :length], mask_BT[i, :length] = row.ids, row.targets, 1
    positions = [row.positions for row in rows if row.positions is not None]
    assert len(positions) in (0, len(rows)), "rows with and without documents in one batch"
    taught = [row.taught() for row in rows if row.taught is not None]
    assert len(taught) in (0, len(rows)), "rows with and without a cached teacher in one batch"
    mask: Tensor | None = None if mask_BT.all() else torch.from_numpy(mask_BT).to(device)
    return Batch(
        torch.from_numpy(ids_BT).to(device),
        torch.from_numpy(targets_BT).to(device),
        mask,
        domains,
        step_targets,
        share,
        positions_BT=torch.from_numpy(np.stack(positions)).to(device) if positions else None,
        taught=cache.join(taught, device) if taught else None,
    )


def count_targets(rows: Sequence[Row]) -> int:
    """Positions on which a loss falls."""
    return int(sum((row.targets != IGNORE).sum() for row in rows))


def check_vocabulary(data: Manifest, model: Any, name: str) -> None:
    """Refuse data tokenised for another vocabulary."""
    found, expected = data.metrics.get("vocab_size"), model.config.vocab_size
    if found is not None and found != expected:
        raise InputError(
            f"{data.folder}: tokenised for a vocabulary of {found}, the model of {name} has {expected}; run the {data.step} step again"
        )
