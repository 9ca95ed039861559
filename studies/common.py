"""What the studies share: rows that are found again, means with intervals over seeds, one kind of table and one kind of plot."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesaic import config
from moesaic.evaluate import bootstrap
from moesaic.flow import files, manifest, metrics, paths

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    """Finished rows of a JSON-lines file; none when there is no file yet."""
    return list(metrics.read(path))


def missing(path: Path, wanted: Sequence[Row]) -> list[Row]:
    """Those of the wanted rows (their keys with values) that the file does not have yet."""
    done = rows(path)
    return [want for want in wanted if not any(want.items() <= item.items() for item in done)]


def append(path: Path, row: Row) -> None:
    """A finished row goes to the file at once, so that an interrupted study goes on where it stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def current(plan: paths.Plan) -> bool:
    """True when a step is there, made with these settings from the inputs that are there now."""
    path = plan.out / manifest.NAME
    if not path.exists() or not all(item.exists() for item in plan.inputs.values()):
        return False
    made = manifest.read(path)
    return made.settings_digest == config.digest(plan.settings) and made.inputs == digests(plan.inputs)


def digests(inputs: dict[str, Path]) -> dict[str, str]:
    """What the steps before made, as manifests name it."""
    return {name: files.sha256(path) for name, path in inputs.items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t over the seeds; NaN for a single one)."""
    found = bootstrap.student(np.asarray(values))
    return found.value, math.nan if found.high is None else found.high - found.value


def cell(values: Sequence[float], digits: int = 3, positive: bool = False) -> str:
    """'1.234 +- 0.012', or the mean alone for a single seed; empty without values.

    Args:
        positive: of what cannot be negative: lowest and highest where the interval goes below 0.
    """

    def told(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"

    if not values:
        return ""
    mean, half = interval(values)
    if positive and half > mean:
        return f"{told(min(values))} to {told(max(values))}"
    return told(mean) + ("" if math.isnan(half) else f" ± {told(half)}")


def table(found: Sequence[Row], names: Sequence[str], columns: Mapping[str, str], digits: int = 3) -> str:
    """Markdown: a line for each name (key `method`), a column for each key, mean and interval over the rows.

    Args:
        columns: key of the rows -> head of the column; none of them can be negative.
    """
    lines = [f"| method | seeds | {' | '.join(columns.values())} |", "|---" * (len(columns) + 2) + "|"]
    for name in names:
        own = [item for item in found if item["method"] == name]
        if own:
            cells = [
                cell([item[key] for item in own if item.get(key) is not None], digits, True)
                for key in columns
            ]
            lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def dots(
    found: Sequence[Row],
    names: Sequence[str],
    columns: Mapping[str, str],
    label: str,
    path: Path,
    log: bool = False,
    lines: Mapping[str, float] | None = None,
) -> None:
    """A dot for each seed and a bar for the interval of the mean, a line for each method; written as SVG.

    Args:
        columns: key of the rows -> its name in the legend. lines: vertical lines by name, e.g. the dense parent.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "moesaic"
    from matplotlib import pyplot

    shown = [name for name in names if any(item["method"] == name for item in found)]
    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(shown) + 1.4), layout="constrained")
    for number, (key, title) in enumerate(columns.items()):
        first = True
        for place, name in enumerate(shown):
            values = [item[key] for item in found if item["method"] == name and item.get(key) is not None]
            if not values:
                continue
            at = place + 0.16 * (number - (len(columns) - 1) / 2)
            mean, half = interval(values)
            axes.errorbar(
                mean, at, xerr=None if math.isnan(half) else half, fmt="|", color=f"C{number}", capsize=2
            )
            axes.plot(
                values, [at] * len(values), "o", ms=4, color=f"C{number}", label=title if first else None
            )
            first = False
    for number, (name, value) in enumerate((lines or {}).items()):
        axes.axvline(value, color="0.5", ls=("--", ":")[number % 2], label=name)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
