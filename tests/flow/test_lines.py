"""JSON lines: one record a line, whatever its text holds."""

import pytest

from moesaic.errors import InputError
from moesaic.flow import files


def test_separators_that_json_does_not_escape_stay_within_their_record(tmp_path):
    records = [
        {"id": "a", "text": "one\u2028two\u2029three\u0085four\x0b\x0c\x1c five"},
        {"id": "b", "text": "\r\n\n"},
    ]
    files.write_lines(tmp_path / "x.jsonl", records)
    assert files.read_lines(tmp_path / "x.jsonl") == records


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n{"id":')
    with pytest.raises(InputError, match=r"x\.jsonl"):
        files.read_lines(tmp_path / "x.jsonl")
