"""Preference tuning: where the sampled questions went, round by round, and how the pairs were learned."""

from html import escape
from typing import Any

from moesaic.report import plots
from moesaic.report.cells import NOTHING, number, percent
from moesaic.report.gather import Gathered, Point
from moesaic.report.tables import Table

VALID = "valid/reward/"


def counts(run: Gathered) -> Table | None:
    """Questions, answers and pairs by variant, round and kind."""
    rows: list[list[str]] = []
    groups: list[int] = []
    for point in _points(run):
        groups.append(len(rows))
        for turn, found in enumerate(point.model.metrics["rounds"], 1):
            for kind, one in found["counts"].items():
                rows.append([escape(str(point.variant)), str(turn), escape(kind), *_cells(one)])
    if not rows:
        return None
    head = [
        "variant", "round", "kind", "questions", "answers<br>right", "different<br>answers", "pairs", "no right<br>answer",
        "no wrong<br>answer", "unrated", "ratings<br>without score",
    ]  # fmt: skip
    caption = "Questions = pairs + no right answer + no wrong answer + unrated. The verifier decides what is right; cut-off answers are not."
    return Table(caption, head, rows, text=(0, 2), groups=groups)


def learned(run: Gathered) -> Table | None:
    """Held-out pairs after the last step of the last round."""
    rows = []
    for point in _points(run):
        found: dict[str, dict[str, float]] = {}
        for key, curve in point.curves.items():
            if key.startswith(VALID):
                name, domain = key.removeprefix(VALID).split("/", 1)
                found.setdefault(domain, {})[name] = curve[-1][1]
        held = point.model.metrics["rounds"][-1]["validation"]
        for domain, one in sorted(found.items()):
            values = [number(one[name], 3) for name in ("margin", "chosen", "rejected")]
            rows.append(
                [escape(str(point.variant)), escape(domain), percent(one["accuracy"]), *values, str(held)]
            )
    if not rows:
        return None
    head = [
        "variant",
        "kind",
        "chosen is<br>preferred",
        "margin",
        "reward<br>chosen",
        "reward<br>rejected",
        "pairs held out,<br>all kinds",
    ]
    caption = "Held-out pairs at the end; a reward is beta times the log ratio of model and reference, the margin their difference."
    return Table(caption, head, rows, text=(0, 1))


def panels(run: Gathered) -> list[str]:
    """Margin, accuracy and the log-probabilities of both answers while training."""
    wanted = (
        ("train/reward/margin", "Reward margin", "chosen over rejected"),
        ("train/reward/accuracy", "Chosen is preferred", "share of the pairs"),
        ("train/logp/chosen", "Chosen answers", "log-probability per token, nats"),
        ("train/logp/rejected", "Rejected answers", "log-probability per token, nats"),
    )
    return [panel for key, title, unit in wanted for panel in plots.curves(run, key, title, unit)]


def _points(run: Gathered) -> list[Point]:
    return [point for point in run.points if point.stage == "preference" and "rounds" in point.model.metrics]


def _cells(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['questions']:,}", _share(one["right"], one["answers"]), f"{one['different']:,}", f"{one['pairs']:,}",
        f"{one['no_right']:,}", f"{one['no_wrong']:,}", f"{one['unrated']:,}", _share(one["unparsable"], one["ratings"]),
    ]  # fmt: skip


def _share(part: int, whole: int) -> str:
    return f"{percent(part / whole)}<small>{part:,} of {whole:,}</small>" if whole else NOTHING
