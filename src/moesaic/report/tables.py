"""Numbers of the report: the rows of the stage table (also summary.json), the verdict, and every other table's cells.

Cells are HTML that is ready to print: `escape` everything that comes from a file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from moesaic.flow.store import flatten
from moesaic.report.cells import (
    NOTHING,
    code,
    duration,
    interval,
    number,
    percent,
    ratio,
    setting,
    short,
    signed,
)
from moesaic.report.gather import Gathered, Point, Score, StepRecord


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


# ---------------------------------------------------------------- the stage table


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
            words += f", which is not told apart from guessing ({percent(chance)}) with {accuracy['n']} items"
        else:
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


def stage_table(run: Gathered, found: Sequence[Mapping[str, Any]]) -> Table:
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


def scores_table(run: Gathered) -> Table:
    """Every task and metric that was measured, one column per model."""
    names: dict[tuple[str, str], None] = {}
    for point in run.points:
        names |= dict.fromkeys(point.scores)
    cells = []
    for task, metric in names:
        digits, scale = (1, 100.0) if metric.startswith(("acc", "exact")) else (3, 1.0)
        first = next(point.scores[task, metric] for point in run.points if (task, metric) in point.scores)
        chance = number(first["chance"] * scale, 1) if first["chance"] is not None else NOTHING
        values = [interval(point.score(task, metric), digits, scale) for point in run.points]
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


# ---------------------------------------------------------------- what ran


def differences(run: Gathered) -> Table | None:
    """Settings in which the variants differ, one column per variant."""
    flat = {name: {} for name in run.variants}  # type: dict[str, dict[str, Any]]
    for point in run.points:
        if point.variant:
            flat[point.variant] |= flatten(point.model.settings, ".")
    keys = list(dict.fromkeys(key for item in flat.values() for key in item))
    different = [key for key in keys if len({repr(item.get(key)) for item in flat.values()}) > 1]
    if not different:
        return None
    cells = [
        [f"<code>{escape(key)}</code>", *(setting(flat[name].get(key)) for name in run.variants)]
        for key in different
    ]
    return Table(
        "Settings in which the variants differ.",
        ["key", *map(escape, run.variants)],
        cells,
        text=range(len(run.variants) + 1),
    )


def settings_table(run: Gathered, steps: Sequence[StepRecord]) -> Table:
    """All settings of a step; several variants side by side, differing rows marked."""
    flat = [flatten(step.manifest.settings, ".") for step in steps]
    keys = list(dict.fromkeys(key for item in flat for key in item))
    cells = [[f"<code>{escape(key)}</code>", *(setting(item.get(key)) for item in flat)] for key in keys]
    strong = [i for i, key in enumerate(keys) if len({repr(item.get(key)) for item in flat}) > 1]
    head = ["key", *(escape(step.key.split("/")[0] if len(steps) > 1 else "value") for step in steps)]
    return Table("", head, cells, text=range(len(steps) + 1), strong=strong)


def provenance_table(run: Gathered) -> Table:
    """When, where and from what each step was made."""
    cells = []
    for step in run.steps:
        record = step.run
        attempts = record.get("attempts", 1)
        cells.append([
            escape(step.key), escape(record.get("started", "")[:19].replace("T", " ")), duration(record.get("seconds")),
            str(attempts) if attempts == 1 else f"<b>{attempts}</b>", escape(record.get("host", "")),
            escape(str(record.get("slurm_job_id") or "")) or NOTHING, code((record.get("git_commit") or "")[:12]),
            code(step.manifest.settings_digest[:12]), f"{sum(o.bytes for o in step.manifest.outputs) / 1e6:,.1f}",
        ])  # fmt: skip
    head = [
        "step",
        "started (UTC)",
        "time",
        "attempts",
        "host",
        "Slurm job",
        "commit",
        "settings",
        "output MB",
    ]
    return Table(
        "Every step: settings are SHA-256 digests (first 12 digits).", head, cells, text=(0, 1, 4, 5, 6, 7)
    )
