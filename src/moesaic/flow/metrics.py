"""metrics.jsonl: one line per value, {ts, step, key, value}. Everything else (MLflow, the report) is made from it."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import InputError
from moesaic.flow import files

NAME = "metrics.jsonl"
SAMPLES = "samples.jsonl"
"""Which rows each step drew, where that is asked for."""


class StepLines:
    """Append-only file of JSON lines with a `step`; `resume_at` drops what a killed run wrote after its last checkpoint, so no step counts twice."""

    def __init__(self, path: Path, resume_at: int | None = None):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_at is None:
            path.unlink(missing_ok=True)
        elif path.exists():
            kept = [line for line in read(path) if line["step"] <= resume_at]
            # Atomically: a kill in the middle must not cost the history.
            files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Append lines."""
        for item in items:
            self._file.write(json.dumps(item) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class MetricsFile(StepLines):
    """Values by step."""

    def log(self, step: int, values: Mapping[str, float]) -> int:
        """Write values of one step. Returns the time stamp (ms), which is in the file too, so replays are idempotent."""
        ts = int(time.time() * 1000)
        self.write(
            {"ts": ts, "step": step, "key": key, "value": float(value)} for key, value in values.items()
        )
        return ts


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics file. A last line cut short by a kill is left out; any other damaged line is an error."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise InputError(f"{path}: line {number} is damaged; delete the line and run again") from error
        yield item


def series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """key -> [(step, value), ...] in order of step; the last value of a step counts, NaN is left out."""
    found: dict[str, dict[int, float]] = {}
    for item in read(path):
        if not math.isnan(item["value"]):
            found.setdefault(item["key"], {})[item["step"]] = item["value"]
    return {key: sorted(values.items()) for key, values in found.items()}
