"""Rows of a file, streamed: .parquet, .jsonl, .json, .csv (each also .gz, .zst, .bz2) and plain text."""

import bz2
import csv
import gzip
import io
import itertools
import json
import logging
import shutil
import sys
import tempfile
import tokenize
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import zstandard

from moesaic.data.fetch import File
from moesaic.errors import InputError

log = logging.getLogger("moesaic.formats")

CHUNK = 1 << 16
# The longest window of `zstd --long=31`; as much memory is taken as a file asks for.
WINDOW = 1 << 31
# What decompressors raise on damaged or truncated input.
BROKEN = (EOFError, OSError, zlib.error, zstandard.ZstdError)
# What the json library raises: for no JSON, for a number of thousands of digits, for brackets within thousands of brackets.
UNREADABLE = (ValueError, RecursionError)


class Record(NamedTuple):
    """One row of a file: its id `{file}:{row}`, its fields, and whether the file is plain text (one field, `text`)."""

    id: str
    fields: dict[str, Any]
    plain: bool = False


def rows(file: File) -> Iterator[Record]:
    """The rows of one file, by its name's ending; memory is bounded by the longest row (a plain text file is one row).

    Raises:
        InputError: damaged or truncated; names the file, and the line where there are lines.
    """
    suffixes = ["", "", *(s.lower() for s in file.path.suffixes)]
    packed = suffixes[-1] if suffixes[-1] in OPENERS else ""
    kind = suffixes[-2] if packed else suffixes[-1]
    if kind == ".parquet":
        with _seekable(file, packed) as stream:
            for i, row in enumerate(_parquet(file, stream)):
                yield Record(f"{file.name}:{i}", row)
    elif kind in READERS:
        with (
            _open(file, packed) as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text,
        ):
            for i, row in enumerate(READERS[kind](file, text)):
                yield Record(f"{file.name}:{i}", row)
    else:
        with _open(file, packed) as binary:
            yield Record(f"{file.name}:0", {"text": _text(file, binary)}, plain=True)


def _damaged(file: File, reason: object, line: int | None = None) -> InputError:
    where = f"{file.path}, line {line}" if line is not None else f"{file.path}"
    return InputError(
        f"{where}: damaged or not what its name says ({' '.join(str(reason).split())[:200]}); fetch or write it again"
    )


def _open(file: File, packed: str) -> IO[bytes]:
    return OPENERS[packed](file.path) if packed else file.path.open("rb")


class _Zstd(io.RawIOBase):
    """Reads a .zst file; unlike zstandard's own reader it fails when the file breaks off in the middle of a frame."""

    def __init__(self, path: Path):
        self.raw = path.open("rb")
        self.unpack = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        self.frame = self.unpack.decompressobj()
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
                self.frame = self.unpack.decompressobj()
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
        except UNREADABLE as error:
            raise _damaged(file, error, number) from error
        if not isinstance(row, dict):
            raise _damaged(file, f"a record must be an object, found {type(row).__name__}", number)
        yield row


def _json(file: File, stream: IO[str]) -> Iterator[dict[str, Any]]:
    """A list of objects, or objects one after the other, one at a time: only the object being read is in memory."""
    decode = json.JSONDecoder().raw_decode
    text, line, opened, listed, wanted, ended = "", 1, False, True, CHUNK, False
    while True:
        stripped = text.lstrip(" \t\r\n," if opened else " \t\r\n")
        line += text.count("\n", 0, len(text) - len(stripped))
        text = stripped
        if not opened and text:
            if text[0] not in "[{":
                raise _damaged(file, "expected a list of objects, or one object a line", line)
            # C4's .json.gz, for one, holds an object a line; here a comma between two may stand or not
            listed = text[0] == "["
            text, opened = text[1:] if listed else text, True
            continue
        if opened and listed and text.startswith("]"):
            return
        end = 0
        if text:
            try:
                row, end = decode(text)
            except json.JSONDecodeError as error:
                if ended:
                    raise _damaged(file, error.msg, line + error.doc.count("\n", 0, error.pos)) from error
            except UNREADABLE as error:
                raise _damaged(file, error, line) from error
        if end:
            if not isinstance(row, dict):
                raise _damaged(file, f"a record must be an object, found {type(row).__name__}", line)
            yield row
            line += text.count("\n", 0, end)
            text, wanted = text[end:], CHUNK
            continue
        if ended:
            if opened and not listed and not text:
                return
            raise _damaged(file, "the list does not end", line)
        try:
            # An object longer than a chunk is tried again with twice the text, so that long objects cost linear time.
            more = stream.read(wanted)
        except (*BROKEN, UnicodeDecodeError) as error:
            raise _damaged(file, error, line) from error
        text, wanted, ended = text + more, 2 * wanted, not more


def _csv(file: File, stream: IO[str]) -> Iterator[dict[str, Any]]:
    """The first line that is no comment (one that begins with `# ` and has no comma) is the header."""
    csv.field_size_limit(sys.maxsize)
    lines = itertools.dropwhile(lambda at: at[1].startswith("# ") and "," not in at[1], _lines(file, stream))
    before, head = next(lines, (1, ""))
    reader = csv.DictReader(itertools.chain([head], (line for _, line in lines)), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise _damaged(file, "more or fewer fields than the header has", before - 1 + reader.line_num)
            yield row
    except csv.Error as error:
        raise _damaged(file, error, before - 1 + reader.reader.line_num) from error


def _parquet(file: File, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Pre-buffering would hold the whole compressed file in memory.
        for batch in pq.ParquetFile(stream, pre_buffer=False).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        # ValueError: text that is no UTF-8, times finer than Python's.
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


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zst": lambda path: io.BufferedReader(_Zstd(path), 1 << 20),
}
READERS: dict[str, Callable[[File, IO[str]], Iterator[dict[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
}
