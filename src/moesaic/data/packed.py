"""Read packed blocks: memory-mapped Arrow, random access by row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from moesaic.errors import InputError
from moesaic.flow.manifest import Manifest


class PackedBlocks:
    """The blocks of one domain and split."""

    def __init__(self, path: Path):
        try:
            with pa.memory_map(str(path)) as source:
                self._table = pa.ipc.open_file(source).read_all()
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: damaged or cut short ({' '.join(str(error).split())[:150]}); delete {path.parent / 'manifest.json'} and run again"
            ) from error
        column = self._table.column("tokens")
        self.block = column.type.list_size
        self._chunks = [
            np.frombuffer(c.values.buffers()[1], dtype=np.int32)[c.values.offset :][
                : len(c) * self.block
            ].reshape(-1, self.block)
            for c in column.chunks
        ]
        self._ends = np.cumsum([len(c) for c in self._chunks])

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def tokens(self, rows: Sequence[int]) -> np.ndarray:
        """Token ids [rows, block], int32."""
        out = np.empty((len(rows), self.block), dtype=np.int32)
        for i, row in enumerate(rows):
            chunk = int(np.searchsorted(self._ends, row, side="right"))
            start = int(self._ends[chunk - 1]) if chunk else 0
            out[i] = self._chunks[chunk][row - start]
        return out

    def bytes(self, rows: Sequence[int]) -> np.ndarray:
        """UTF-8 bytes of the predicted tokens (positions 1 to block - 1) of each row, [rows]."""
        return self._table.column("bytes").take(pa.array(rows, pa.int64())).to_numpy()

    def starts(self, row: int) -> np.ndarray:
        """Positions in a block at which a document starts."""
        return np.asarray(self._table.column("starts")[row].as_py(), dtype=np.int32)


def open_blocks(manifest: Manifest, domain: str, split: str) -> PackedBlocks:
    """Blocks of a domain; split is train or validation."""
    return PackedBlocks(manifest.folder / f"{domain}.{split}.arrow")


def domains(manifest: Manifest) -> list[str]:
    """Names of the domains, in the configuration's order as far as JSON keeps it (sorted)."""
    return sorted(manifest.metrics["domains"])
