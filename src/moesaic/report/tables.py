"""Tables of the report: distance to the teacher, data, settings and provenance. Every stage beside the parent: stage_table.py.

Cells are HTML that is ready to print: `escape` everything that comes from a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from moesaic.report.cells import (
    NOTHING,
    number,
)
from moesaic.report.gather import Gathered, Point


@dataclass(frozen=True)
class Table:
    """A table: `text` are the columns that are not numbers, `strong` the rows to stress."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = (0,)
    strong: Sequence[int] = ()
    groups: Sequence[int] = field(default=())
    """Rows before which a line is drawn."""


# ---------------------------------------------------------------- training


def teacher_table(run: Gathered) -> Table | None:
    """Distance to the teacher on validation text, as the last validation of each stage with a teacher measured it."""
    cells = []
    for point in run.points:
        distill = point.model.settings.get(point.stage, {})
        found = [_last(point, f"valid/{key}/") for key in ("forward_kl", "reverse_kl", "entropy")]
        for domain in found[0]:
            values = (number(part.get(domain), 3) for part in found)
            cells.append(
                [escape(point.label), escape(str(distill.get("loss", ""))), _domain(run, domain), *values]
            )
    if not cells:
        return None
    head = ["model", "loss", "domain", "KL(teacher;&nbsp;student)", "KL(student;&nbsp;teacher)", "entropy"]
    caption = "Distance to the teacher on validation text, nats per token; entropy is the student's."
    return Table(caption, head, cells, text=(0, 1, 2))


# ---------------------------------------------------------------- data


def documents_table(run: Gathered) -> Table | None:
    """Documents in = kept + dropped, by reason; chat sources below."""
    found = [
        (name, item["documents_in"], item["documents_kept"], _documents(item["dropped"]))
        for name, item in run.stats.get("documents", {}).items()
    ]
    found += [
        (f"{name} (chat)", item["conversations_in"], item["conversations_kept"], item["dropped"])
        for name, item in run.stats.get("chat", {}).items()
    ]
    if not found:
        return None
    reasons = list(dict.fromkeys(reason for *_, dropped in found for reason in dropped))
    cells = [
        [
            _domain(run, name),
            f"{total:,}",
            f"{kept:,}",
            *(f"{dropped.get(reason, 0):,}" for reason in reasons),
        ]
        for name, total, kept, dropped in found
    ]
    return Table(
        "Documents and conversations: in = kept + dropped.",
        ["domain", "in", "kept", *(escape(reason.replace("_", " ")) for reason in reasons)],
        cells,
    )


def _documents(dropped: dict[str, dict[str, int]]) -> dict[str, int]:
    """Reason -> documents."""
    return {reason: counted["documents"] for reason, counted in dropped.items()}


def tokens_table(run: Gathered) -> Table | None:
    """Blocks and tokens of each domain."""
    step = next((step.manifest for step in run.steps if step.key == "prepare/tokens"), None)
    if step is None:
        return None
    keys = ["train_blocks", "train_tokens", "validation_blocks", "validation_tokens"]
    cells = [
        [_domain(run, name), *(f"{item[key]:,}" for key in keys)]
        for name, item in step.metrics["domains"].items()
    ]
    head = ["domain", *(key.replace("_", "<br>") for key in keys)]
    return Table(f"Packed text, {step.metrics['block']} tokens to a block.", head, cells)


def mixture_table(run: Gathered) -> Table | None:
    """Samples drawn from each domain, beside the weight that was asked for."""
    cells = []
    names: dict[str, None] = {}
    found = []
    for point in run.points:
        drawn = _last(point, "mixture/drawn/")
        if drawn:
            found.append((point, drawn, _last(point, "mixture/weight/")))
            names |= dict.fromkeys(drawn)
    for point, drawn, weight in found:
        total = sum(drawn.values()) or 1.0
        cells.append(
            [
                escape(point.label),
                *(_share(drawn[n], total, weight.get(n)) if n in drawn else NOTHING for n in names),
            ]
        )
    if not cells:
        return None
    return Table(
        "Sequences drawn; small: share, and the share asked for.", ["model", *map(escape, names)], cells
    )


def _last(point: Point, prefix: str) -> dict[str, float]:
    return {
        key.removeprefix(prefix): values[-1][1]
        for key, values in point.curves.items()
        if key.startswith(prefix)
    }


def _share(drawn: float, total: float, weight: float | None) -> str:
    asked = f" / {100 * weight:.0f} %" if weight is not None else ""
    return f"{drawn:,.0f}<small>{100 * drawn / total:.0f} %{asked}</small>"


def _domain(run: Gathered, name: str) -> str:
    return escape(name) + (' <span class="tag">held out</span>' if name in run.held_out else "")
