"""The cache of an offline teacher: Parquet shards with, for each row of the data, the likeliest tokens at its target positions.

A shard holds `shard_rows` consecutive rows of one domain, each as a row group of its own, so that a row is read alone. Columns: `row` (int32, in the
domain), `digest` (int64, of the row's ids and targets), `ids` (list, N times K + S token ids, uint16 or int32), `log_p` (list, their
log-probabilities), `rest` (list of N: log of the mass beyond the K likeliest), `target` (list of N: log-probability of the text's own token).

Shapes: N target positions of a row, K likeliest tokens, S tokens drawn from the others in proportion to the teacher's probability.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from moesaic.data.sampler import Sample
from moesaic.distill.teachers import Cached
from moesaic.errors import InputError
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest, path_of

FOLDER = "shards"
LOG_NOTHING = -60.0
"""Log of a mass that is as good as 0."""


class CachedRow(NamedTuple):
    """What the teacher says at the targets of one row."""

    ids: np.ndarray
    """[N, K + S]."""
    log_p: np.ndarray
    """[N, K + S]."""
    rest: np.ndarray
    """[N]."""
    target: np.ndarray
    """[N]."""
    sampled: int
    """S."""
    temperature: float


def shard_name(split: str, domain: int, shard: int) -> str:
    """File of a shard. Args: domain: place of its name in the sorted names."""
    return f"{split}-{domain:02}-{shard:05}.parquet"


def row_digest(ids: np.ndarray, targets: np.ndarray) -> int:
    """63 bits of a digest of a row's ids and targets."""
    parts = (np.ascontiguousarray(part, dtype="<i8").tobytes() for part in (ids, targets))
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest(), "big") >> 1


def schema(vocabulary: int, precision: str) -> pa.Schema:
    """Columns of a shard."""
    token = pa.uint16() if vocabulary <= 1 << 16 else pa.int32()
    value = pa.float16() if precision == "float16" else pa.float32()
    lists = {"ids": token, "log_p": value, "rest": value, "target": value}
    return pa.schema(
        [
            ("row", pa.int32()),
            ("digest", pa.int64()),
            *((name, pa.list_(kind)) for name, kind in lists.items()),
        ]
    )


def bytes_per_token(vocabulary: int, top: int, tail: int, precision: str) -> int:
    """Bytes of one target position before compression."""
    value = 2 if precision == "float16" else 4
    return (top + tail) * ((2 if vocabulary <= 1 << 16 else 4) + value) + 2 * value


def write(path: Path, columns: pa.Schema, rows: Sequence[tuple[int, int, CachedRow]]) -> None:
    """Write a shard; it appears whole. Args: rows: (row, digest, what the teacher says)."""
    with (
        files.atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, columns, compression="zstd") as out,
    ):
        for row, digest, said in rows:
            values: dict[str, np.ndarray] = {
                "ids": said.ids, "log_p": said.log_p, "rest": said.rest, "target": said.target
            }  # fmt: skip
            arrays = [pa.array([row], pa.int32()), pa.array([digest], pa.int64())]
            for name, value in values.items():
                kind = columns.field(name).type.value_type
                flat = pa.array(np.ascontiguousarray(value).reshape(-1).astype(kind.to_pandas_dtype()), kind)
                arrays.append(pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat))
            out.write_table(pa.Table.from_arrays(arrays, schema=columns), row_group_size=1)


class Cache:
    """Random access to the rows of a finished cache."""

    def __init__(self, step: Manifest):
        """Args: step: manifest of the `teacher` step. Raises InputError when a file is missing or damaged."""
        manifest.verify(step, only=[FOLDER])
        self.step, self.settings = step, step.settings
        self.vocabulary: int = step.metrics["vocab_size"]
        self.counts: Mapping[str, Mapping[str, int]] = step.metrics["rows"]
        self.open = functools.lru_cache(maxsize=32)(self._open)

    def sizes(self, split: str, wanted: Mapping[str, int]) -> dict[str, int]:
        """Rows by domain that the cache has, of those that a stream has."""
        missing = sorted(set(wanted) - set(self.counts[split]))
        if missing:
            raise InputError(
                f"{self.step.folder}: the teacher's cache has no {split} rows of {missing[0]}; {self._remedy}"
            )
        return {name: min(count, self.counts[split][name]) for name, count in wanted.items()}

    def reader(
        self, split: str, sample: Sample, ids: np.ndarray, targets: np.ndarray
    ) -> Callable[[], CachedRow]:
        """Reads a row when it is called. Args: ids, targets: of the row, which must be what the teacher saw."""
        return lambda: self.read(split, sample, row_digest(ids, targets))

    def read(self, split: str, sample: Sample, digest: int) -> CachedRow:
        """One row. Raises InputError when the cache was made from another row."""
        shard, within = divmod(sample.row, self.settings["shard_rows"])
        domain = sorted(self.counts[split]).index(sample.domain)
        table = self.open(shard_name(split, domain, shard)).read_row_group(within)
        if table["digest"][0].as_py() != digest or table["row"][0].as_py() != sample.row:
            raise InputError(
                f"{self.step.folder}: the teacher's cache was made from another row {sample.row} of {sample.domain} ({split}); {self._remedy}"
            )
        width = self.settings["top"] + self.settings["tail"]
        ids, log_p, rest, target = (
            table[name].combine_chunks().values.to_numpy(zero_copy_only=False)
            for name in ("ids", "log_p", "rest", "target")
        )
        # validation is always measured at temperature 1
        temperature = self.settings["temperature"] if split == "train" else 1.0
        return CachedRow(
            ids.reshape(-1, width), log_p.reshape(-1, width), rest, target, self.settings["tail"], temperature
        )

    @property
    def _remedy(self) -> str:
        return f"delete {path_of(self.step.folder)} and run the teacher step again"

    def _open(self, name: str) -> pq.ParquetFile:
        path = self.step.folder / FOLDER / name
        try:
            return pq.ParquetFile(path, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: missing or damaged ({' '.join(str(error).split())[:120]}); {self._remedy}"
            ) from error


def join(rows: Sequence[CachedRow], device: torch.device | str) -> Cached:
    """The rows of a batch, one after the other: the order of the target positions."""

    def stack(name: str, kind: Any) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]).astype(kind)).to(device)

    first = rows[0]
    assert all(row.temperature == first.temperature for row in rows)
    return Cached(
        stack("ids", np.int64),
        stack("log_p", np.float32),
        stack("rest", np.float32),
        stack("target", np.float32),
        first.sampled,
        first.temperature,
    )
