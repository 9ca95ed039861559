"""Answers to held-out instructions beside the dense parent's, and what distillation on sampled answers was trained on."""

from html import escape
from typing import Any

from moesaic.evaluate.sides import BINS, NAME, SIDES
from moesaic.report.cells import NOTHING, interval, number, percent
from moesaic.report.gather import Gathered
from moesaic.report.tables import Table

ROWS = (
    ("rougeL", "ROUGE-L", 1, 1), ("rougeL_by_seed", "ROUGE-L, interval over seeds", 1, 1), ("exact_match", "exact match, %", 1, 100),
    ("tokens", "tokens of an answer", 1, 1), ("finished", "finished, %", 1, 100), ("repetition", "4-grams repeated, %", 1, 100),
)  # fmt: skip


def scores(run: Gathered) -> Table | None:
    """One row per side, length and metric, one column per model; None where instructions were not evaluated."""
    rows: list[list[str]] = []
    groups: list[int] = []
    lengths = {"": "all", **{f"_{label}": _words(least, most) for label, least, most in BINS}}
    for side in SIDES:
        for ending, words in lengths.items():
            task = f"{NAME}_{side}{ending}"
            for metric, label, places, factor in ROWS:
                known = [point.scores[task, metric] for point in run.points if (task, metric) in point.scores]
                if not known:
                    continue
                if metric == ROWS[0][0] and not ending:
                    groups.append(len(rows))
                cells = [interval(point.score(task, metric), places, factor) for point in run.points]
                rows.append([side, words, label, str(known[0]["n"]), *cells])
    if not rows:
        return None
    head = ["side", "words of the<br>reference", "metric", "n"]
    head += [escape(point.label).replace("/", "<br>") for point in run.points]
    caption = (
        "Sampled answers to held-out instructions, mean over the decoding seeds, 95 % interval over questions (over seeds where it says so; n counts "
        "what the interval is over). Choose on dev, report test."
    )
    return Table(caption, head, rows, text=(0, 1, 2), groups=groups)


def rounds(run: Gathered) -> Table | None:
    """Distillation on sampled answers: what each round was trained on."""
    rows: list[list[str]] = []
    groups: list[int] = []
    for point in run.points:
        if point.stage != "distill" or "rounds" not in point.model.metrics:
            continue
        groups.append(len(rows))
        for turn, told in enumerate(point.model.metrics["rounds"], 1):
            rows += [
                [escape(str(point.variant)), str(turn), kind, *_counted(told, kind)]
                for kind in ("teacher", "student")
                if kind in told["counts"]
            ]
    if not rows:
        return None
    head = [
        "variant", "round", "text of", "answers", "finished", "tokens<br>each", "4-grams<br>repeated", "log-probability<br>under teacher",
        "under student<br>at the start", "pairs<br>trained, held out", "steps",
    ]  # fmt: skip
    caption = "Sampled answers by round; log-probabilities in nats per token, of the pairs that were scored."
    return Table(caption, head, rows, text=(0, 2), groups=groups)


def _counted(told: dict[str, Any], kind: str) -> list[str]:
    counts = told["counts"]
    one = counts[kind]
    nats = [
        number(counts["nats"][f"{model}_of_{kind}_text"] / max(1, counts["tokens"][kind]), 2)
        if "nats" in counts
        else NOTHING
        for model in ("teacher", "student")
    ]
    each = max(1, one["answers"])
    return [
        f"{one['answers']:,}", percent(one["finished"] / each), number(one["tokens"] / each, 0),
        percent(one["repeated"] / max(1, one["grams"])), *nats, f"{told['train']:,}, {told['validation']:,}", f"{told['steps']:,}",
    ]  # fmt: skip


def _words(least: float, most: float) -> str:
    return f"{least:.0f} to {most:.0f}" if most < float("inf") else f"{least:.0f} and more"
