"""Layers that tokens skip: what was asked for, what each layer got and what really runs on validation text, and what it does to speed."""

from collections.abc import Callable
from html import escape
from typing import Any

from moesaic.report.cells import NOTHING, number, percent, ratio
from moesaic.report.gather import Gathered, Point
from moesaic.report.plots import variant_color
from moesaic.report.svg import svg
from moesaic.report.tables import Table

BUDGET, RAN = "depth/budget/layer_", "depth/ran/layer_"
By = list[tuple[int, float]]


def points(run: Gathered) -> list[Point]:
    """The models whose layers skip, as far as they were evaluated."""
    return [point for point in run.points if point.depth]


def panels(run: Gathered) -> list[str]:
    """By layer: share of the tokens that ran on validation text; the last budgets and the share that ran while training."""
    found = points(run)
    made = []
    lines = [(point, "", evaluated(point)) for point in found]
    if lines:
        made.append(_panel(run, "Runs at inference", "share of the tokens, validation text", lines))
    trained = [point for point in found if last(point, BUDGET)]
    lines = [(point, "budget", last(point, BUDGET)) for point in trained]
    lines += [(point, "ran", last(point, RAN)) for point in trained]
    if lines:
        made.append(_panel(run, "Runs in training", "share of the tokens, last step", lines))
    return made


def table(run: Gathered) -> Table | None:
    """One row per model that was expanded or skips."""
    rows = []
    for point in run.points:
        facts = point.model.metrics.get("depth")
        if not facts:
            continue
        settings = point.model.settings.get("tune", {}).get("depth") or {}
        skip = settings.get("skip") or {}
        score = point.score("depth/ran", "share")
        speed, parent = point.measured.get("tokens_per_second"), run.dense.measured.get("tokens_per_second")
        rows.append(
            [
                escape(point.label), escape(_numbers(facts.get("inserted", []))), escape(_numbers(facts.get("off", []))),
                str(len(facts.get("routed", []))), percent(skip["capacity"]) if skip else NOTHING,
                percent(score["value"]) if score else NOTHING, number(speed, 0), ratio(speed / parent if speed and parent else None),
            ]
        )  # fmt: skip
    if not rows:
        return None
    head = ["model", "inserted layers", "FFN off", "routed layers", "capacity", "runs", "tokens/s", "x dense"]
    words = (
        "Depth: “runs” is the share of the (token, layer) pairs of skipping layers whose FFN ran on validation text. A skip that does not raise tokens/s saves "
        "multiplications only, and no time."
    )
    return Table(words, head, rows, text=(0, 1, 2))


def evaluated(point: Point) -> By:
    """Share of the tokens that ran, mean of the domains, by skipping layer."""
    domains = list(point.depth["ran"].values())
    means = [sum(values) / len(domains) for values in zip(*domains, strict=True)]
    return list(zip(point.depth["skipping"], means, strict=True))


def last(point: Point, prefix: str) -> By:
    """The last value of a metric by layer."""
    found = {
        int(key.removeprefix(prefix)): values[-1][1]
        for key, values in point.curves.items()
        if key.startswith(prefix)
    }
    return sorted(found.items())


def _numbers(values: list[int]) -> str:
    """3, 4, 5, 9 -> 3-5, 9; a dash for none."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts) or "\N{EN DASH}"


def _panel(run: Gathered, title: str, unit: str, lines: list[tuple[Point, str, By]]) -> str:
    means = "; ".join(
        f"{point.label} {kind} {sum(v for _, v in values) / len(values):.3f}".replace("  ", " ")
        for point, kind, values in lines
    )
    return svg(_draw(run, title, unit, lines), f"{title} by layer, {unit}; means: {means}.", (5.2, 3.2))


def _draw(
    run: Gathered, title: str, unit: str, lines: list[tuple[Point, str, By]]
) -> Callable[[Any, Any], None]:
    def draw(_figure: Any, axes: Any) -> None:
        for point, kind, values in lines:
            axes.plot(
                [index for index, _ in values], [value for _, value in values], linewidth=1.2, marker="o", markersize=2.5,
                color=variant_color(run, str(point.variant)), linestyle="--" if kind == "budget" else "-",
                alpha=0.6 if point.stage == "distill" else 1.0, label=f"{point.label} {kind}".strip(),
            )  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel("layer")
        axes.set_ylabel(unit)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=1.2)

    return draw
