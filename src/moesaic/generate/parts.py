"""Long lists of records made piece by piece: each piece is a file that appears whole, so a killed run loses at most the piece it was at.

The pieces lie in a folder named by a digest of everything that they depend on. A rerun, another shard count, or another variant of the
same run with the same model finds what is there and makes only what is missing.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic import config
from moesaic.errors import InputError, Interrupted
from moesaic.flow import files, signals
from moesaic.flow.progress import Progress

log = logging.getLogger("moesaic.generate")
CACHE = Path("results") / "cache"
"""Pieces of all runs in this working directory; removing it costs time and nothing else."""


@dataclass(frozen=True)
class Work:
    """A list of records to make."""

    name: str
    """For progress lines."""
    unit: str
    identity: Mapping[str, Any]
    """JSON-able; everything that the records depend on."""
    keys: list[str]
    """One per record, in order; record i holds it as `id`."""
    size: int
    """Records in a piece."""
    shard: int = 0
    shards: int = 1
    """Piece p is of shard p modulo shards, so that the pieces do not depend on how many shards there are."""
    cache: Path = CACHE

    @property
    def folder(self) -> Path:
        """Where the pieces are."""
        return self.cache / config.digest({**self.identity, "keys": self.keys, "size": self.size})[:20]

    def mine(self) -> list[tuple[Path, range]]:
        """Files and record numbers of this shard's pieces."""
        starts = range(0, len(self.keys), self.size)
        return [
            (self.folder / f"part-{number:06d}.jsonl", range(start, min(start + self.size, len(self.keys))))
            for number, start in enumerate(starts)
            if number % self.shards == self.shard
        ]


def make(work: Work, one: Callable[[range], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All records of this shard, in order; pieces that are there are read, the others are made by `one` and written.

    Args:
        one: record numbers -> records, each with its `id`.

    Raises:
        Interrupted: asked to stop; the pieces made so far are kept. InputError: a damaged piece.
    """
    assert len(set(work.keys)) == len(work.keys), "two records with one id"
    with signals.caught() as free:
        _make(work, one)
    if free and signals.stop_requested():
        raise Interrupted(f"{work.name}: stopped, all {work.unit} are kept; run again to go on")
    return [record for path, rows in work.mine() for record in read(path, [work.keys[i] for i in rows])]


def _make(work: Work, one: Callable[[range], list[dict[str, Any]]]) -> None:
    """The pieces that are not there."""
    pieces = work.mine()
    total = sum(len(rows) for _, rows in pieces)
    there = [(path, rows) for path, rows in pieces if path.exists()]
    start = sum(len(rows) for _, rows in there)
    if start:
        log.info("%s: %d of %d %s are there already", work.name, start, total, work.unit)
    progress = Progress(work.name, total, work.unit, start=start)
    for path, rows in pieces:
        if path.exists():
            continue
        if signals.stop_requested():
            raise Interrupted(
                f"{work.name}: stopped, {progress.done} of {total} {work.unit} are kept; run again to go on"
            )
        records = one(rows)
        assert [item["id"] for item in records] == [work.keys[i] for i in rows], "records and keys differ"
        files.write_text(path, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in records))
        progress.update(len(rows))


def read(path: Path, keys: list[str]) -> Iterator[dict[str, Any]]:
    """A piece's records.

    Raises:
        InputError: it is not what was written.
    """
    try:
        records = files.json_lines(path)
        found = [item["id"] for item in records]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run again") from error
    if found != keys:
        raise InputError(
            f"{path}: damaged, {len(found)} records where {len(keys)} belong; delete it and run again"
        )
    yield from records
