"""Packed blocks on disk: an uncompressed Arrow IPC file that is read through a memory map, block by block, at random.

Columns: `tokens` fixed_size_list<int32>[block]; `starts` list<int32>, positions where a document starts; `bytes` int32, UTF-8
bytes of the tokens at positions 1 .. block-1 (the predicted ones; the end-of-document token counts 0), for bits per byte.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.manifest import Manifest, path_of

# Blocks in a record batch; all of a file's batches but the last have exactly this many.
BATCH = 1024


class Columns(NamedTuple):
    """A record batch of B blocks of T tokens."""

    tokens: np.ndarray
    """Ids [B, T] int32."""
    starts: np.ndarray
    """Start positions of documents, block after block [S] int32."""
    starts_per_block: np.ndarray
    """How many of them each block has [B]."""
    bytes: np.ndarray
    """UTF-8 bytes of the predicted tokens [B] int32."""


@contextlib.contextmanager
def writer(path: Path, block: int) -> Iterator[Callable[[Columns], None]]:
    """A function that appends record batches; the file appears, whole, at the end."""
    schema = pa.schema(
        [("tokens", pa.list_(pa.int32(), block)), ("starts", pa.list_(pa.int32())), ("bytes", pa.int32())]
    )
    with (
        files.atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as out,
    ):

        def write(columns: Columns) -> None:
            offsets = np.concatenate([[0], np.cumsum(columns.starts_per_block)]).astype(np.int32)
            arrays = [
                pa.FixedSizeListArray.from_arrays(pa.array(columns.tokens.reshape(-1)), block),
                pa.ListArray.from_arrays(pa.array(offsets), pa.array(columns.starts)),
                pa.array(columns.bytes),
            ]
            out.write_batch(pa.record_batch(arrays, schema=schema))

        yield write


class PackedBlocks:
    """Random access to the blocks of one file; only the pages that are asked for are read."""

    def __init__(self, path: Path):
        self.path = path
        self.reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        self.block: int = self.reader.schema.field("tokens").type.list_size
        self.batches: dict[int, pa.RecordBatch] = {}
        last = self.reader.num_record_batches - 1
        self.size = last * BATCH + self._batch(last).num_rows if last >= 0 else 0
        assert last <= 0 or self._batch(0).num_rows == BATCH, f"{path}: record batches of another size"

    def __len__(self) -> int:
        return self.size

    def tokens(self, rows: Sequence[int]) -> np.ndarray:
        """Token ids of blocks [rows, block] int32."""
        out = np.empty((len(rows), self.block), np.int32)
        for i, row in enumerate(rows):
            batch, within = self._find(row)
            values = batch.column("tokens").values.to_numpy(zero_copy_only=True)
            out[i] = values[within * self.block : (within + 1) * self.block]
        return out

    def bytes(self, rows: Sequence[int]) -> np.ndarray:
        """UTF-8 bytes of the predicted tokens of blocks [rows] int32."""
        found = (self._find(row) for row in rows)
        return np.fromiter(
            (batch.column("bytes")[within].as_py() for batch, within in found), np.int32, len(rows)
        )

    def starts(self, row: int) -> np.ndarray:
        """Positions in a block where a document starts [documents] int32, ascending."""
        batch, within = self._find(row)
        return np.array(batch.column("starts")[within].as_py(), np.int32)

    def _find(self, row: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= row < self.size:
            raise IndexError(f"block {row} of {self.size} in {self.path}")
        batch, within = divmod(int(row), BATCH)
        return self._batch(batch), within

    def _batch(self, index: int) -> pa.RecordBatch:
        if index not in self.batches:
            self.batches[index] = self.reader.get_batch(index)
        return self.batches[index]


def open_blocks(manifest: Manifest, domain: str, split: str) -> PackedBlocks:
    """The blocks of a domain's train or validation split.

    Raises:
        InputError: no such domain, or a missing or truncated file (named, with what to do).
    """
    path = manifest.folder / f"{domain}.{split}.arrow"
    if domain not in domains(manifest):
        raise InputError(f"{manifest.folder}: no domain '{domain}'; domains: {', '.join(domains(manifest))}")
    try:
        return PackedBlocks(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        remedy = f"delete {path_of(manifest.folder)} and run the tokens step again"
        raise InputError(
            f"{path}: missing or damaged ({' '.join(str(error).split())[:120]}); {remedy}"
        ) from error


def domains(manifest: Manifest) -> list[str]:
    """The domains of a tokens manifest, sorted."""
    return sorted(manifest.metrics["domains"])
