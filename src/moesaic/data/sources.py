"""Stream records and documents out of files: .parquet, .jsonl, .json, .csv (each also .gz, .zst, .bz2) and plain text."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import shutil
import sys
import tempfile
import tokenize
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import zstandard

from moesaic.data.fetch import File, resolve
from moesaic.errors import InputError
from moesaic.schema import HubDataset, Location, Source

log = logging.getLogger("moesaic.sources")

CHUNK = 1 << 16
COMPRESSED = (".gz", ".zst", ".bz2")
# What decompressors raise on damaged or truncated input.
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
CUTS = ("\n\n", "\n", ". ", " ")


class Document(NamedTuple):
    """One text; the id is `{file}:{row}`, and `:{piece}` for a piece of a long text."""

    id: str
    text: str


class Record(NamedTuple):
    """One row of a file: its id `{file}:{row}`, its fields, and whether the file is plain text (one field, `text`)."""

    id: str
    fields: dict[str, Any]
    plain: bool = False


def documents(source: Source, key: str = "source") -> Iterator[Document]:
    """Yield a source's documents in the order of its files; memory is bounded by the longest record (or text file).

    Args:
        source: where, which field, and how many documents at most; pieces of long texts count as documents.
        key: the source's configuration key, for error messages, e.g. data.domains.web.sources.0.

    Raises:
        InputError: a damaged file (named, with the line), or a record without the field.
    """
    count = 0
    for record in located(source.at, key):
        field = "text" if record.plain else source.field
        if field not in record.fields:
            raise InputError(
                f"{key}.field: no field '{field}' in {record.id}; its fields are {', '.join(map(str, record.fields))}"
            )
        text = record.fields[field]
        if text is not None and not isinstance(text, str):
            raise InputError(f"{key}.field: '{field}' of {record.id} is {type(text).__name__}, not text")
        text = (text or "").replace("\r\n", "\n").replace("\r", "\n")
        long = source.max_characters is not None and len(text) > source.max_characters
        for i, piece in enumerate(
            cut(text, source.max_characters) if long and source.max_characters else [text]
        ):
            if source.max_documents is not None and count >= source.max_documents:
                return
            count += 1
            yield Document(f"{record.id}:{i}" if long else record.id, piece)


def records(location: Location) -> Iterator[dict[str, Any]]:
    """The rows of a location as dicts; a plain text file is one row with the field `text`."""
    return (record.fields for record in located(location))


def located(location: Location, key: str = "source") -> Iterator[Record]:
    """The rows of a location, each with its id."""
    if isinstance(location, HubDataset):
        yield from _hub(location, key)
        return
    for file in resolve(location):
        yield from _rows(file)


def cut(text: str, size: int) -> Iterator[str]:
    """Consecutive pieces of at most `size` characters that concatenate to the text.

    Each ends at the last paragraph end of the window's second half; without one at a line end, a sentence end or a space, and
    in the middle of a word only when there is none of these.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        for mark in CUTS:
            found = text.rfind(mark, start + size // 2, end)
            if found > start:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end
    yield text[start:]


# ---------------------------------------------------------------- formats


def _rows(file: File) -> Iterator[Record]:
    suffixes = [s.lower() for s in file.path.suffixes]
    packed = suffixes[-1] if suffixes and suffixes[-1] in COMPRESSED else ""
    kind = (suffixes[-2] if len(suffixes) > 1 else "") if packed else (suffixes[-1] if suffixes else "")
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv}
    if kind == ".parquet":
        with _seekable(file, packed) as stream:
            rows = enumerate(_parquet(file, stream))
            yield from (Record(f"{file.name}:{i}", row) for i, row in rows)
    elif kind in readers:
        with (
            _open(file, packed) as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as stream,
        ):
            rows = enumerate(readers[kind](file, stream))
            yield from (Record(f"{file.name}:{i}", row) for i, row in rows)
    else:
        with _open(file, packed) as binary:
            yield Record(f"{file.name}:0", {"text": _text(file, binary)}, plain=True)


def _damaged(file: File, reason: object, line: int | None = None) -> InputError:
    where = f"{file.path}, line {line}" if line is not None else f"{file.path}"
    return InputError(
        f"{where}: damaged or not what its name says ({' '.join(str(reason).split())[:200]}); fetch or write it again"
    )


@contextmanager
def _open(file: File, packed: str) -> Iterator[IO[bytes]]:
    opened: IO[bytes]
    match packed:
        case ".gz":
            opened = gzip.open(file.path)  # type: ignore[assignment]
        case ".bz2":
            opened = bz2.open(file.path)
        case ".zst":
            opened = io.BufferedReader(_Zstd(file.path), 1 << 20)  # type: ignore[arg-type, assignment]
        case _:
            opened = file.path.open("rb")
    with opened:
        yield opened


class _Zstd(io.RawIOBase):
    """Reads a .zst file; unlike zstandard's own reader it fails when the file breaks off in the middle of a frame."""

    def __init__(self, path: Path):
        self.raw = path.open("rb")
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.ready, self.rest, self.within = b"", b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            data = self.rest or self.raw.read(CHUNK)
            if not data:
                if self.within:
                    raise EOFError("the compressed file ends in the middle of a frame")
                return 0
            self.ready, self.within, self.rest = self.frame.decompress(data), True, b""
            if self.frame.eof:
                self.rest, self.within = self.frame.unused_data, False
                self.frame = zstandard.ZstdDecompressor().decompressobj()
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


@contextmanager
def _seekable(file: File, packed: str) -> Iterator[IO[bytes]]:
    """Parquet is read from its end: a compressed one is unpacked into an unnamed temporary file first."""
    with _open(file, packed) as stream:
        if not packed:
            yield stream
            return
        with tempfile.TemporaryFile() as whole:
            try:
                shutil.copyfileobj(stream, whole, 1 << 20)
            except BROKEN as error:
                raise _damaged(file, error) from error
            whole.seek(0)
            yield whole


def _lines(file: File, stream: IO[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1; a stream that breaks off names the line where it did."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline()
        except (*BROKEN, UnicodeDecodeError) as error:
            raise _damaged(file, error, number) from error
        if not line:
            return
        yield number, line


def _jsonl(file: File, stream: IO[str]) -> Iterator[dict[str, Any]]:
    for number, line in _lines(file, stream):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _damaged(file, error, number) from error
        if not isinstance(row, dict):
            raise _damaged(file, f"a record must be an object, found {type(row).__name__}", number)
        yield row


def _json(file: File, stream: IO[str]) -> Iterator[dict[str, Any]]:
    """A list of objects, one at a time: only the object being read is in memory."""
    decode = json.JSONDecoder().raw_decode
    text, line, opened, wanted, ended = "", 1, False, CHUNK, False
    while True:
        stripped = text.lstrip(" \t\r\n," if opened else " \t\r\n")
        line += text.count("\n", 0, len(text) - len(stripped))
        text = stripped
        if not opened and text:
            if text[0] != "[":
                raise _damaged(file, "expected a list of objects; use .jsonl for one object a line", line)
            text, opened = text[1:], True
            continue
        if opened and text.startswith("]"):
            return
        row: Any = None
        if text:
            try:
                row, end = decode(text)
            except json.JSONDecodeError as error:
                if ended:
                    raise _damaged(file, error.msg, line + error.doc.count("\n", 0, error.pos)) from error
        if row is not None:
            if not isinstance(row, dict):
                raise _damaged(file, f"a record must be an object, found {type(row).__name__}", line)
            yield row
            line += text.count("\n", 0, end)
            text, wanted = text[end:], CHUNK
            continue
        if ended:
            raise _damaged(file, "the list does not end", line)
        try:
            # An object longer than a chunk is tried again with twice the text, so that long objects cost linear time.
            more = stream.read(wanted)
        except (*BROKEN, UnicodeDecodeError) as error:
            raise _damaged(file, error, line) from error
        text, wanted, ended = text + more, 2 * wanted, not more


def _csv(file: File, stream: IO[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader((line for _, line in _lines(file, stream)), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise _damaged(file, "more or fewer fields than the header has", reader.line_num)
            yield row
    except csv.Error as error:
        raise _damaged(file, error, reader.line_num) from error


def _parquet(file: File, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _text(file: File, stream: IO[bytes]) -> str:
    """A whole text file: UTF-8; Python files as their coding line says; Latin-1 where UTF-8 does not fit, with a warning."""
    try:
        raw = stream.read()
    except BROKEN as error:
        raise _damaged(file, error) from error
    if b"\0" in raw:
        raise _damaged(
            file,
            "it is a binary file; known formats: .parquet .jsonl .json .csv and text, each also .gz .zst .bz2",
        )
    try:
        encoding = (
            tokenize.detect_encoding(io.BytesIO(raw).readline)[0]
            if file.path.suffix == ".py"
            else "utf-8-sig"
        )
        return raw.decode(encoding)
    except (UnicodeDecodeError, SyntaxError):
        log.warning("%s is not UTF-8: read as Latin-1", file.path)
        return raw.decode("latin-1")


def _hub(location: HubDataset, key: str) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.load_dataset(
            location.dataset,
            location.subset,
            split=location.split,
            revision=location.revision,
            streaming=True,
        )
        for i, row in enumerate(rows):
            yield Record(f"{location.dataset}:{i}", dict(row))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{key}.at: cannot read {location.dataset} from the hub ({reason}); check dataset, subset, split, the network and HF_TOKEN"
        ) from error
