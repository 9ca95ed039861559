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
        both, turned = _pairs(run, point), {LOST: 0, WON: 0}
        for kind, *_ in _turned(run, point):
            turned[kind] += 1
        right = [sum(row["chosen"] == row["right"] for row in side) for side in zip(*both, strict=True)]
        rows.append(
            [f"<b>{escape(point.label)}</b>", str(len(both)), *map(str, (*right, turned[LOST], turned[WON]))]
        )
    if not rows:
        return None
    head = ["model", "questions", "dense right", "right now", LOST, WON]
    return Table("Answers to the same multiple-choice questions, beside the dense parent's.", head, rows)


def examples(run: Gathered) -> list[tuple[str, list[str]]]:
    """(title, articles) of each variant and direction; from each task in turn."""
    out = []
    for point in _last(run):
        found = list(_turned(run, point))
        for kind in (LOST, WON):
            own = _in_turn([(task, before, after) for turned, task, before, after in found if turned == kind])
            if own:
                out.append((f"{point.label}: {kind}", [_article(*item) for item in own[:SHOWN]]))
    return out


def _last(run: Gathered) -> list[Point]:
    """Of each variant the last model whose answers were kept, when the parent's were, too."""
    points = [[point for point in run.of(variant) if _pairs(run, point)] for variant in run.variants]
    return [found[-1] for found in points if found]


def _pairs(run: Gathered, point: Point) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(before, after) for _, before, after in _both(run, point)]


def _both(run: Gathered, point: Point) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(task, the parent's answer, this model's) of every question that both were asked."""
    for task, rows in point.choices.items():
        before = {row["key"]: row for row in run.dense.choices.get(task, [])}
        for row in rows:
            if row["key"] in before:
                yield task, before[row["key"]], row


def _turned(run: Gathered, point: Point) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    for task, before, after in _both(run, point):
        was, now = (row["chosen"] == row["right"] for row in (before, after))
        if was != now:
            yield (LOST if was else WON), task, before, after


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
