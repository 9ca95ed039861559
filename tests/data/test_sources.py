"""Reading: every format gives the same rows, limits hold, and damaged files are named with their line."""

import bz2
import csv
import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import sources
from moesaic.errors import InputError
from moesaic.schema import LocalFiles, Source

ROWS = [{"text": f'Row {i}: Größe\nsecond "line", {i}', "kind": "x"} for i in range(300)]
PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.ZstdCompressor().compress}


def at(path: Path | str) -> LocalFiles:
    return LocalFiles(kind="files", path=str(path))


def read(path: Path | str, **changes) -> list[sources.Document]:
    return list(sources.documents(Source(at=at(path), **changes), "data.domains.web.sources.0"))


def write(path: Path, rows: list[dict]) -> bytes:
    """The rows in the format of the path's first suffix; returns the plain bytes."""
    match path.suffixes[0]:
        case ".jsonl":
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        case ".json":
            return json.dumps(rows, indent=2, ensure_ascii=False).encode()
        case ".csv":
            plain = path.with_name("plain.csv")
            with plain.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            return plain.read_bytes()
    plain = path.with_name("plain.parquet")
    pq.write_table(pa.Table.from_pylist(rows), plain)
    return plain.read_bytes()


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, kind, packed):
    path = tmp_path / f"rows{kind}{packed}"
    path.write_bytes(PACK[packed](write(path, ROWS)))
    assert list(sources.records(at(path))) == ROWS
    assert [d.id for d in read(path)[:2]] == [f"{path}:0", f"{path}:1"]


@pytest.mark.parametrize("packed", PACK)
def test_plain_text_is_one_document_a_file(tmp_path, packed):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt{packed}").write_bytes(PACK[packed](f"text {name}\r\nend".encode()))
    assert [d.text for d in read(tmp_path, field="ignored")] == ["text a\nend", "text b\nend"]


def test_latin_1_text_and_python_coding_lines(tmp_path):
    (tmp_path / "old.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "new.py").write_bytes("# coding: cp1252\nx = '\u2013'\n".encode("cp1252"))
    assert [d.text for d in read(tmp_path)] == ["# coding: cp1252\nx = '\u2013'\n", "café"]


def test_a_long_object_is_read_across_chunks(tmp_path):
    rows = [{"text": "x" * 300_000}, {"text": "ö" * 200_000}, {"text": "end"}]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    assert list(sources.records(at(tmp_path / "long.json"))) == rows
    # as C4's files hold them
    (tmp_path / "long.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(sources.records(at(tmp_path / "long.json"))) == rows


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "cut.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 5000)[:-20],
            r"cut\.jsonl\.gz, line \d+: damaged",
        ),
        (
            "cut.jsonl.zst",
            zstandard.compress(b'{"text": "a"}\n' * 5000)[:-4],
            r"cut\.jsonl\.zst, line \d+: damaged",
        ),
        (
            "cut.jsonl.bz2",
            bz2.compress(b'{"text": "a"}\n' * 5000)[:-4],
            r"cut\.jsonl\.bz2, line \d+: damaged",
        ),
        ("not.jsonl.gz", b'{"text": "a"}\n', r"not\.jsonl\.gz, line 1: damaged"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": "b\n', r"bad\.jsonl, line 2: damaged"),
        ("list.jsonl", b'{"text": "a"}\n\n[1]\n', r"list\.jsonl, line 3: .*must be an object, found list"),
        ("bytes.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"bytes\.jsonl, line \d: damaged"),
        ("cut.json", b'[\n{"text": "a"},\n{"text": "b"', r"cut\.json, line 3: damaged"),
        ("open.json", b'[{"text": "a"}', r"open\.json, line 1: .*does not end"),
        ("word.json", b'"text"', r"word\.json, line 1: .*expected a list"),
        ("lines.json", b'{"text": "a"}\n{"text": "b', r"lines\.json, line 2: damaged"),
        ("few.csv", b"text,kind\na,b\nc\n", r"few\.csv, line 3: .*more or fewer fields"),
        ("noted.csv", b"# about\n# more\ntext,kind\na,b\nc\n", r"noted\.csv, line 5: .*more or fewer fields"),
        ("quote.csv", b'text,kind\na,b\n"c,d\n', r"quote\.csv, line 3: damaged"),
        (
            "null.json",
            b'[\n{"text": "a"},\nnull]',
            r"null\.json, line 3: .*must be an object, found NoneType",
        ),
        ("digits.json", b'[{"text": "a", "n": ' + b"1" * 5000 + b"}]", r"digits\.json, line 1: damaged"),
        ("digits.jsonl", b'{"text": "a"}\n{"n": ' + b"1" * 5000 + b"}\n", r"digits\.jsonl, line 2: damaged"),
        ("deep.jsonl", b'{"text": "a"}\n' + b"[" * 200_000, r"deep\.jsonl, line 2: damaged"),
        ("cut.parquet", b"PAR1 and no more", r"cut\.parquet: damaged"),
        ("image.txt", b"\x89PNG\0\0", r"image\.txt: .*binary file"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_parquet_whose_text_is_no_utf8_is_named(tmp_path):
    texts = pa.array([b"good", b"bad \xff\xfe"], pa.binary())
    path = tmp_path / "latin.parquet"
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, texts.buffers())}), path)
    with pytest.raises(InputError, match=r"latin\.parquet: damaged .*utf-8"):
        read(path)


def test_zstd_with_a_long_window_is_read(tmp_path):
    """What `zstd --long=31` writes; the library refuses windows above 128 MB by itself."""
    small = {"hash_log": 12, "chain_log": 12, "compression_level": 1}
    for window in (28, 31):
        how = zstandard.ZstdCompressionParameters(window_log=window, **small)
        packer = zstandard.ZstdCompressor(compression_params=how).compressobj()
        data = packer.compress(b'{"text": "a"}\n') + packer.flush()
        assert zstandard.get_frame_parameters(data).window_size == 1 << window
        (tmp_path / "long.jsonl.zst").write_bytes(data)
        assert [document.text for document in read(tmp_path / "long.jsonl.zst")] == ["a"]


def test_comments_before_a_csv_header_are_skipped_and_a_header_is_none(tmp_path):
    (tmp_path / "noted.csv").write_text("# version=1.2\n# by hand\ntext,kind\n# a,b\n")
    assert [document.text for document in read(tmp_path / "noted.csv")] == ["# a"]
    (tmp_path / "odd.csv").write_text("# id,text\n1,b\n")
    assert [document.text for document in read(tmp_path / "odd.csv")] == ["b"]
    (tmp_path / "none.csv").write_text("# version=1.2\n")
    assert read(tmp_path / "none.csv") == []


def test_a_missing_field_names_the_key_and_what_there_is(write_jsonl):
    path = write_jsonl("rows.jsonl", [{"body": "a", "title": "b"}])
    with pytest.raises(
        InputError,
        match=r"data\.domains\.web\.sources\.0\.field: no field 'text' in .*rows\.jsonl:0; its fields are body, title",
    ):
        read(path)


def test_null_is_an_empty_document_and_a_list_is_an_error(write_jsonl):
    assert read(write_jsonl("null.jsonl", [{"text": None}]))[0].text == ""
    with pytest.raises(InputError, match=r"'text' of .*:0 is list, not text"):
        read(write_jsonl("list.jsonl", [{"text": ["a"]}]))


def test_max_documents_counts_pieces_and_stops_reading(write_jsonl, tmp_path):
    path = Path(write_jsonl("rows.jsonl", [{"text": "one two three four five six"}] * 3))
    path.write_text(path.read_text() + "not json\n")
    found = read(path, max_characters=10, max_documents=5)
    assert len(found) == 5
    assert [d.id.removeprefix(str(path)) for d in found] == [":0:0", ":0:1", ":0:2", ":0:3", ":1:0"]


def test_parquet_is_read_by_row_groups(tmp_path):
    random = np.random.default_rng(0)
    rows = [{"text": random.bytes(5000).hex()} for _ in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "big.parquet", row_group_size=50)
    assert (tmp_path / "big.parquet").stat().st_size > 14_000_000
    tracemalloc.start()
    try:
        reading = sources.records(at(tmp_path / "big.parquet"))
        assert next(reading) == rows[0]
        held = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes()
    finally:
        tracemalloc.stop()
    assert held < 12_000_000, "a few row groups, not the file"
    assert list(reading) == rows[1:]


def test_long_texts_are_cut_at_paragraph_ends():
    text = "First paragraph here.\n\nSecond one.\n\nThird and last paragraph."
    assert list(sources.cut(text, 40)) == [
        "First paragraph here.\n\nSecond one.\n\n",
        "Third and last paragraph.",
    ]


@given(st.text(alphabet="ab .\n", max_size=400), st.integers(2, 50))
def test_pieces_are_short_enough_and_lose_nothing(text, size):
    pieces = list(sources.cut(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces) or text == ""


def test_hub_errors_name_the_dataset(monkeypatch):
    import datasets

    from moesaic.schema import HubDataset

    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        InputError,
        match=r"data\.domains\.web\.sources\.0\.at: cannot read some/data from the hub \(no route\)",
    ):
        list(
            sources.documents(
                Source(at=HubDataset(kind="hub", dataset="some/data")), "data.domains.web.sources.0"
            )
        )


def test_hub_rows_are_streamed(monkeypatch):
    import datasets

    from moesaic.schema import HubDataset

    asked = {}

    def load(name, subset, **options):
        asked.update(options, name=name, subset=subset)
        return iter([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    location = HubDataset(kind="hub", dataset="some/data", subset="en", split="validation", revision="abc")
    assert [d.id for d in sources.documents(Source(at=location))] == ["some/data:0", "some/data:1"]
    assert asked == {
        "name": "some/data",
        "subset": "en",
        "split": "validation",
        "revision": "abc",
        "streaming": True,
    }
