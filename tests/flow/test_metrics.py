"""metrics.jsonl: resume drops what no checkpoint covers, a cut last line is no damage, any other is."""

import json
from pathlib import Path

import pytest

from moesaic.errors import InputError
from moesaic.flow import metrics
from moesaic.flow.metrics import MetricsFile


def _write(path: Path, steps: range) -> None:
    log = MetricsFile(path)
    for step in steps:
        log.log(step, {"loss": 10.0 - step, "lr": 0.1})
    log.close()


def test_resume_drops_later_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 8))
    log = MetricsFile(path, resume_at=4)
    log.log(5, {"loss": 99.0})
    log.close()
    assert metrics.series(path)["loss"] == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0), (5, 99.0)]
    assert [step for step, _ in metrics.series(path)["lr"]] == [1, 2, 3, 4]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_fresh_start_forgets_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 8))
    _write(path, range(1, 3))
    assert [step for step, _ in metrics.series(path)["loss"]] == [1, 2]


def test_resume_without_a_file_starts_one(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "deep" / "metrics.jsonl", resume_at=4)
    log.log(5, {"loss": 1.0})
    log.close()
    assert metrics.series(tmp_path / "deep" / "metrics.jsonl") == {"loss": [(5, 1.0)]}


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_cut_last_line_is_tolerated_and_gone_after_resume(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    path.write_bytes(path.read_bytes()[: -1 - cut])
    whole = path.read_text().count("\n")
    assert len(list(metrics.read(path))) == whole == 5
    log = MetricsFile(path, resume_at=3)
    log.log(4, {"loss": 0.5})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 1, 2, 2, 3, 4]


def test_damage_in_the_middle_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4))
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:10]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 3 is damaged"):
        list(metrics.read(path))


def test_series_takes_the_last_value_and_leaves_out_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsFile(path)
    log.log(1, {"loss": 3.0})
    log.log(1, {"loss": 2.0})
    log.log(2, {"loss": float("nan")})
    log.close()
    assert metrics.series(path) == {"loss": [(1, 2.0)]}
