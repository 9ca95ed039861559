"""Questions that the dense parent and a variant answered differently, to be read."""

from collections.abc import Iterator
from html import escape
from typing import Any

from moesaic.report.gather import Gathered, Point
from moesaic.report.tables import Table

SHOWN = 6
"""Questions of each direction and variant."""
LOST, WON = "right before, wrong now", "wrong before, right now"


def counts(run: Gathered) -> Table | None:
    """By variant, after its last stage: how many answers turned. None where no multiple choice was kept."""
    rows = []
    for point in _last(run):
        found = [(_right(before), _right(after)) for _, before, after in _both(run, point)]
        right = [sum(side) for side in zip(*found, strict=True)]
        turned = [found.count((True, False)), found.count((False, True))]
        rows.append([f"<b>{escape(point.label)}</b>", str(len(found)), *map(str, (*right, *turned))])
    if not rows:
        return None
    head = ["model", "questions", "dense right", "right now", LOST, WON]
    return Table("Answers to the same multiple-choice questions, beside the dense parent's.", head, rows)


def examples(run: Gathered) -> list[tuple[str, list[str]]]:
    """(title, articles) of each variant and direction; from each task in turn."""
    out = []
    for point in _last(run):
        for kind, was in ((LOST, True), (WON, False)):
            turned = [item for item in _both(run, point) if _right(item[1]) == was != _right(item[2])]
            own = _in_turn(turned)
            if own:
                out.append((f"{point.label}: {kind}", [_article(*item) for item in own[:SHOWN]]))
    return out


def _last(run: Gathered) -> list[Point]:
    """Of each variant the last model whose answers were kept, when the parent's were, too."""
    points = [[point for point in run.of(variant) if any(_both(run, point))] for variant in run.variants]
    return [found[-1] for found in points if found]


def _both(run: Gathered, point: Point) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(task, the parent's answer, this model's) of every question that both were asked."""
    for task, rows in point.choices.items():
        before = {row["key"]: row for row in run.dense.choices.get(task, [])}
        for row in rows:
            if row["key"] in before:
                yield task, before[row["key"]], row


def _right(row: dict[str, Any]) -> bool:
    return bool(row["chosen"] == row["right"])


def _in_turn(found: list[tuple[str, Any, Any]]) -> list[tuple[str, Any, Any]]:
    """The first of each task, then the second of each."""
    seen: dict[str, int] = {}
    numbered = []
    for item in found:
        seen[item[0]] = seen.get(item[0], -1) + 1
        numbered.append((seen[item[0]], item))
    return [item for _, item in sorted(numbered, key=lambda pair: pair[0])]


def _article(task: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    lines = []
    for place, choice in enumerate(after["choices"]):
        said = [
            name
            for name, chosen in (("right answer", after["right"]), ("dense", before["chosen"]), ("this model", after["chosen"]))
            if chosen == place
        ]  # fmt: skip
        note = f' <span class="quiet">({", ".join(said)})</span>' if said else ""
        text = escape(choice.strip())
        lines.append(f"<li>{f'<b>{text}</b>' if place == after['right'] else text}{note}</li>")
    return f"<article><h3>{escape(task)}</h3><p>{escape(after['asked'].strip())}</p><ul>{''.join(lines)}</ul></article>"
