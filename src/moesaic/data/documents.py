"""Step `documents`: read every domain's sources, repair, filter, deduplicate, split into train and validation by document."""

import hashlib
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moesaic.data import clean, sources
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.progress import Progress
from moesaic.flow.step import Context, Result
from moesaic.schema import Source

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])
SPLITS = ("train", "validation")
ROW_GROUP = 1000


def run(context: Context) -> Result:
    """Write `{domain}.{split}.parquet` and `stats.json`; documents in = kept + dropped by reason, characters likewise."""
    deduplicator = clean.Deduplicator(context.settings["clean"]["near_duplicates"])
    stats: dict[str, Any] = {}
    for name, domain in context.settings["domains"].items():
        stats[name] = _domain(context, name, domain["sources"], deduplicator)
    files.write_json(context.out / "stats.json", stats)
    outputs = [f"{name}.{split}.parquet" for name in stats for split in SPLITS]
    headline = {
        name: {"in": item["documents_in"], "kept": item["documents_kept"], "dropped": item["dropped"]}
        for name, item in stats.items()
    }
    return Result([*outputs, "stats.json"], {"domains": headline})


def _domain(
    context: Context, name: str, specifications: list[Any], deduplicator: clean.Deduplicator
) -> dict[str, Any]:
    settings, seed = context.settings, context.settings["seed"]
    counts: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    writers = {split: _Writer(context, f"{name}.{split}.parquet") for split in SPLITS}
    progress = Progress(f"documents of {name}", 0, "documents")
    for index, raw in enumerate(specifications):
        source = Source.model_validate(raw)
        for document in sources.documents(source, f"data.domains.{name}.sources.{index}"):
            text = clean.repair(document.text)
            reason = clean.quality(text, settings["clean"]) or deduplicator.check(text) or "kept"
            counts[reason] += 1
            characters[reason] += len(document.text)
            if reason == "kept":
                identity = f"{index}:{document.id}"
                writers[_split(identity, settings["validation"], seed)].add(identity, text)
                characters["written"] += len(text)
            progress.total = progress.done + 1_000_000
            progress.done += 1
    if counts["kept"] == 0:
        dropped = {key: value for key, value in counts.items() if value}
        raise InputError(
            f"data.domains.{name}: empty, no document is left of {sum(counts.values())} (dropped: {dropped or 'none'}); check the sources and data.clean"
        )
    for split, writer in writers.items():
        if writer.count == 0:
            raise InputError(
                f"data.domains.{name}: no document fell into {split} ({counts['kept']} in all); add documents or change data.validation"
            )
        writer.close()
    dropped = {reason: counts[reason] for reason in clean.REASONS if counts[reason]}
    assert sum(counts.values()) == counts["kept"] + sum(dropped.values())
    return {
        "documents_in": sum(counts.values()),
        "documents_kept": counts["kept"],
        "dropped": dropped,
        "characters_in": sum(v for key, v in characters.items() if key != "written"),
        "characters_kept": characters["kept"],
        "characters_dropped": {reason: characters[reason] for reason in clean.REASONS if characters[reason]},
        "characters_written": characters["written"],
        "characters_removed_by_repair": characters["kept"] - characters["written"],
        "split": {split: writer.count for split, writer in writers.items()},
    }


def _split(identity: str, share: float, seed: int) -> str:
    """Train or validation by a hash of seed and id: a document's side never depends on other documents."""
    value = (
        int.from_bytes(hashlib.blake2b(f"{seed}:{identity}".encode(), digest_size=8).digest(), "little")
        / 2**64
    )
    return "validation" if value < share else "train"


class _Writer:
    """Parquet in row groups, atomically."""

    def __init__(self, context: Context, name: str):
        self.count = 0
        self._rows: list[dict[str, str]] = []
        self._guard = files.atomic_path(context.out / name)
        self._file = pq.ParquetWriter(self._guard.__enter__(), SCHEMA, compression="zstd")

    def add(self, identity: str, text: str) -> None:
        self._rows.append({"id": identity, "text": text})
        self.count += 1
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()
        self._guard.__exit__(None, None, None)

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows = []
