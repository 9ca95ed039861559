"""The stage table for the terminal, from summary.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import InputError
from moesaic.flow import ui
from moesaic.report.cells import percent, short

HEAD = ("model", "bits/byte", "95 %", "x dense", "held-out", "choice", "active FFN", "params", "tokens/s")


def text(results: Path, uri: str | None = None) -> str:
    """Table, verdict, and where to look next. Raises InputError when there is no report."""
    path = results / "summary.json"
    if not path.is_file():
        raise InputError(
            f"{path}: not there; run `snakemake` (or `make run`) to the end, or `moesaic report --config ...`"
        )
    summary = json.loads(path.read_text(encoding="utf-8"))
    lines = [HEAD, *(_cells(row) for row in summary["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    out = ["", f"{summary['name']}: {summary['verdict']}", ""]
    for number, line in enumerate(lines):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        out.append("  ".join([first, *rest]).rstrip())
        if number == 0:
            out.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    out += ["", f"report: {results / 'report.html'}", f"MLflow: {ui.command(uri)}", ""]
    return "\n".join(out)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    bits, speed = row["bits_per_byte"], row["tokens_per_second"]
    between = f"{bits['ci_low']:.3f}-{bits['ci_high']:.3f}" if bits and bits["ci_low"] is not None else "-"
    return (
        row["label"],
        _value(bits, 3),
        between,
        f"{row['bits_ratio']:.2f}" if row["bits_ratio"] else "-",
        _value(row["held_out"], 3),
        percent(row["accuracy"]["value"]) if row["accuracy"] else "-",
        percent(row["active_ffn"]),
        short(row["active_parameters"]),
        f"{speed:,.0f}" if speed else "-",
    )


def _value(score: Mapping[str, Any] | None, digits: int) -> str:
    return f"{score['value']:.{digits}f}" if score else "-"
