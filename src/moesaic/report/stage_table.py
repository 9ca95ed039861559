"""Every stage beside the dense parent: the rows of the first table (also summary.json), the verdict in words, all scores."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from moesaic.report.cells import floors, interval, number, percent, ratio, short, signed
from moesaic.report.gather import Gathered, Point, Score
from moesaic.report.tables import Table


def rows(run: Gathered) -> list[dict[str, Any]]:
    """One row per model: dense first. Ratios are to the dense parent; None where something was not measured."""
    return [_row(point, run.dense) for point in run.points]


def _row(point: Point, dense: Point) -> dict[str, Any]:
    bits, parent = point.score("text/average", "bits_per_byte"), dense.score("text/average", "bits_per_byte")
    held, parent_held = (
        point.score("text/held-out", "bits_per_byte"),
        dense.score("text/held-out", "bits_per_byte"),
    )
    accuracy, parent_accuracy = point.score("mc/average", "acc"), dense.score("mc/average", "acc")
    speed, parent_speed = point.measured.get("tokens_per_second"), dense.measured.get("tokens_per_second")
    cv = point.score("routing/load_cv", "load_cv")
    return {
        "label": point.label,
        "variant": point.variant,
        "stage": point.stage,
        "architecture": point.model.metrics["architecture"],
        "bits_per_byte": _values(bits),
        "bits_ratio": _ratio(bits, parent),
        "held_out": _values(held),
        "held_out_ratio": _ratio(held, parent_held),
        "accuracy": _values(accuracy),
        "accuracy_ratio": _ratio(accuracy, parent_accuracy),
        "parameters": point.model.metrics["parameters"],
        "active_parameters": point.model.metrics["active_parameters"],
        "active_ffn": round(point.active_ffn, 6),
        "tokens_per_second": speed,
        "speed_ratio": round(speed / parent_speed, 6) if speed and parent_speed else None,
        "load_cv": _values(cv),
        "model": str(point.model.folder / "model"),
    }


def _values(score: Score | None) -> dict[str, Any] | None:
    return {key: score[key] for key in ("value", "ci_low", "ci_high", "n", "chance")} if score else None


def _ratio(score: Score | None, parent: Score | None) -> float | None:
    return round(score["value"] / parent["value"], 6) if score and parent and parent["value"] else None


def best(found: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> Mapping[str, Any] | None:
    """The row with the fewest bits per byte among those after the last stage; None without one."""
    last = [row for row in found if row["variant"] and row["stage"] == stages[-1] and row["bits_per_byte"]]
    return min(last, key=lambda row: row["bits_per_byte"]["value"]) if last else None


def verdict(found: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> str:
    """The result in words, from the numbers of the rows; plain text."""
    dense, row = found[0], best(found, stages)
    if row is None or not dense["bits_per_byte"]:
        return "No model was evaluated after the last stage."
    bits, parent = row["bits_per_byte"], dense["bits_per_byte"]
    more = row["bits_ratio"] - 1
    words = (
        f"{row['variant']} after {row['stage']} runs {percent(row['active_ffn'])} of the dense parent's FFN per token "
        f"({short(row['active_parameters'])} of {short(dense['active_parameters'])} parameters active) and needs "
        f"{bits['value']:.3f} bits per byte on the trained domains, the parent {parent['value']:.3f} ({signed(more)})"
    )
    if row["accuracy"] and dense["accuracy"]:
        accuracy, chance = row["accuracy"], row["accuracy"]["chance"]
        words += (
            f"; multiple choice {percent(accuracy['value'])} against {percent(dense['accuracy']['value'])}"
        )
        if chance is not None and accuracy["ci_low"] is not None and accuracy["ci_low"] <= chance:
            worse = accuracy["ci_high"] < chance
            told = "worse than" if worse else "not told apart from"
            words += f", which is {told} guessing ({percent(chance)}) with {accuracy['n']} items"
        else:
            if row["accuracy_ratio"] is not None:
                words += f", {percent(row['accuracy_ratio'])} of the parent's accuracy"
            words += f" (chance {percent(chance)})" if chance is not None else ""
        if (
            accuracy["ci_low"] is not None
            and accuracy["ci_low"] <= dense["accuracy"]["value"] <= accuracy["ci_high"]
        ):
            words += f"; the 95 % interval of {accuracy['n']} items includes the parent's value"
    others = [
        other
        for other in found
        if other["stage"] == row["stage"] and other is not row and other["bits_per_byte"]
    ]
    if others:
        listed = (
            f"{o['variant']} {o['bits_per_byte']['value']:.3f} ({signed(o['bits_ratio'] - 1)}) at {percent(o['active_ffn'])} active FFN"
            for o in others
        )
        words += f". After the same stage: {'; '.join(listed)}"
    return words + "."


def table(run: Gathered, found: Sequence[Mapping[str, Any]]) -> Table:
    """The first table of the page."""
    head = [
        "model", "bits/byte<br>trained", "&times; dense", "bits/byte<br>held-out", "&times; dense", "multiple<br>choice", "&times; dense",
        "active<br>FFN", "active<br>params", "total<br>params", "tokens/s<br>prefill", "&times; dense", "load<br>CV",
    ]  # fmt: skip
    cells, groups = [], []
    winner = best(found, run.stages)
    for i, row in enumerate(found):
        if row["variant"] and row["stage"] == run.stages[0]:
            groups.append(i)
        name = f"<b>{escape(row['variant'])}</b> {row['stage']}" if row["variant"] else "<b>dense</b> parent"
        speed = number(row["tokens_per_second"], 0)
        cells.append([
            name, interval(row["bits_per_byte"], 3), ratio(row["bits_ratio"]), interval(row["held_out"], 3),
            ratio(row["held_out_ratio"]), interval(row["accuracy"], 1, 100), ratio(row["accuracy_ratio"]),
            percent(row["active_ffn"]), short(row["active_parameters"]), short(row["parameters"]), speed,
            ratio(row["speed_ratio"]), interval(row["load_cv"], 2),
        ])  # fmt: skip
    chance = found[0]["accuracy"]["chance"] if found[0]["accuracy"] else None
    note = f"; multiple choice is accuracy in %, chance {100 * chance:.1f}" if chance is not None else ""
    caption = f"Every stage beside the dense parent. Small: 95 % bootstrap interval{note}."
    return Table(
        caption, head, cells, strong=[i for i, row in enumerate(found) if row is winner], groups=groups
    )


def scores(run: Gathered) -> Table:
    """Every task and metric that was measured, one column per model."""
    names: dict[tuple[str, str], None] = {}
    for point in run.points:
        names |= dict.fromkeys(point.scores)
    cells = []
    for task, metric in names:
        digits, scale = (1, 100.0) if metric.startswith(("acc", "exact")) else (3, 1.0)
        first = next(point.scores[task, metric] for point in run.points if (task, metric) in point.scores)
        found = [point.score(task, metric) for point in run.points]
        chance, own = floors(found, digits, scale)
        values = [interval(score, digits, scale) + floor for score, floor in zip(found, own, strict=True)]
        unit = " %" if scale == 100 else ""
        cells.append([escape(task), escape(metric) + unit, str(first["n"]), chance, *values])
    head = [
        "task",
        "metric",
        "n",
        "chance",
        *(escape(point.label).replace("/", "<br>") for point in run.points),
    ]
    return Table("All scores with 95 % intervals; n: blocks or items.", head, cells, text=(0, 1))
