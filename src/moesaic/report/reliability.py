"""The reliability suite: axes beside chance and the dense parent, what is missing, calibration, and what the routers do on shifted text."""

from collections.abc import Sequence
from html import escape
from typing import Any

from moesaic.evaluate.reliability.metrics import bin_of
from moesaic.report.cells import floors, interval
from moesaic.report.gather import Gathered, Point
from moesaic.report.plots import variant_color
from moesaic.report.svg import INK, SOFT, svg
from moesaic.report.tables import Table

AXES = {
    "reliability/refusal": ("harmful instructions refused", "refusal", "higher"),
    "reliability/over_refusal": ("harmless instructions refused", "refusal", "lower"),
    "reliability/hallucination": ("hallucination: TruthfulQA", "acc", "higher"),
    "reliability/hallucination_dola": ("the same with DoLa", "acc", "higher"),
    "reliability/dola_gain": ("gained by DoLa", "acc_gain", "higher"),
    "reliability/adversarial": ("adversarial text", "acc", "higher"),
    "reliability/adversarial_drop": ("lost by adversarial text", "acc_drop", "lower"),
    "reliability/style": ("other styles", "acc", "higher"),
    "reliability/style_drop": ("lost by style", "acc_drop", "lower"),
    "reliability/domain": ("other domains", "acc", "higher"),
    "reliability/domain_drop": ("lost by domain", "acc_drop", "lower"),
    "reliability/calibration": ("calibration error (ECE)", "ece", "lower"),
}
"""Row of scores.json -> name, metric, and which way is better."""
MOE = (
    ("drift", "routing drift, JS, bits"),
    ("load_cv", "load CV"),
    ("bits_per_byte", "bits per byte"),
)


def axes(run: Gathered) -> Table | None:
    """One row per axis: every model with its interval, and its paired difference to the parent. None where the suite was not run."""
    rows = []
    for task, (label, metric, better) in AXES.items():
        first = next((p.scores[task, metric] for p in run.points if (task, metric) in p.scores), None)
        if first is None:
            continue
        chance, cells = _cells(run, task, metric)
        rows.append([label, better, str(first["n"]), chance, *cells])
    if not rows:
        return None
    caption = (
        "Reliability by axis in %, 95 % intervals; &Delta;: minus the dense parent, paired on the same items. Chance of the calibration error: "
        "what a perfectly calibrated model shows on so few items."
    )
    return Table(caption, ["axis", "better", "n", "chance", *_head(run)], rows, text=(0, 1))


def tasks(run: Gathered) -> Table | None:
    """Every task of the suite with every metric."""
    names = _names(run, "rel_")
    rows = []
    for task, metric in names:
        first = next(p.scores[task, metric] for p in run.points if (task, metric) in p.scores)
        chance, cells = _cells(run, task, metric)
        label = escape(task.removeprefix("rel_").replace("_", " "))
        rows.append([label, escape(metric.replace("_", " ")), str(first["n"]), chance, *cells])
    if not rows:
        return None
    return Table(
        "Every task in %. &Delta;: minus the dense parent on the same items.",
        ["task", "metric", "n", "chance", *_head(run)],
        rows,
        text=(0, 1),
    )


def shifts(run: Gathered) -> Table | None:
    """Routing drift, load CV and bits per byte of each group of texts; the dense parent's bits per byte is the control."""
    names = _names(run, "shift/")
    groups = list(dict.fromkeys(task.removeprefix("shift/") for task, _ in names))
    rows = []
    for metric, label in MOE:
        for group in groups:
            task = f"shift/{group}"
            if (task, metric) not in names:
                continue
            first = next(p.scores[task, metric] for p in run.points if (task, metric) in p.scores)
            found = [point.score(task, metric) for point in run.points]
            floor, own = floors(found, 3)
            cells = [interval(score, 3) + words for score, words in zip(found, own, strict=True)]
            rows.append([label, escape(group), str(first["n"]), floor, *cells])
    if not rows:
        return None
    head = ["figure", "text", "n", "no drift", *(_label(point) for point in run.points)]
    caption = (
        "Shifted text. Drift: Jensen-Shannon divergence between the expert loads on plain and on shifted text, mean of layers; “no drift”: its mean "
        "when texts are shuffled between the two."
    )
    return Table(caption, head, rows, text=(0, 1))


def stress(run: Gathered) -> Table | None:
    """Bits per byte lost when an expert is gone or another number runs per token."""
    rows = []
    labels = {"rise_mean": "one expert gone, mean", "rise_worst": "one expert gone, worst"}
    points = [point for point in run.points if point.variant is not None]
    for task, metric in _names(run, "stress/"):
        count = task.rpartition("_")[2]
        label = labels.get(metric, f"{escape(count)} experts per token")
        first = next(p.scores[task, metric] for p in points if (task, metric) in p.scores)
        rows.append([label, str(first["n"]), *(interval(point.score(task, metric), 3) for point in points)])
    if not rows:
        return None
    caption = (
        "Bits per byte more than the model's own on plain sentences (the dense parent's bits per byte on them stands above). An expert that is gone is gone "
        "in all layers; its tokens take their next choice."
    )
    return Table(caption, ["stress", "n", *(_label(point) for point in points)], rows)


def attacks(run: Gathered) -> Table | None:
    """Accuracy before and under each live attack, its success, queries and changed words; every model beside the dense parent."""
    labels = {
        "acc_clean": "accuracy before, %", "acc_attacked": "accuracy under attack, %", "attack_success": "attacks that succeed, %",
        "queries": "queries per sentence", "changed_words": "words changed, %",
    }  # fmt: skip
    names = _names(run, "attack/")
    rows = []
    for task, metric in sorted(names, key=lambda key: (key[0], list(labels).index(key[1]))):
        cells = []
        for point in run.points:
            cells.append(interval(point.score(task, metric), 1, 1 if metric == "queries" else 100))
            if point.variant is not None:
                cells.append(_delta(point, task, metric))
        rows.append([escape(task.removeprefix("attack/")), labels[metric], *cells])
    if not rows:
        return None
    caption = (
        "Live attacks on the sentiment of film sentences. Success and queries: of the sentences judged rightly before; changed words: of those that turned. "
        "&Delta;: minus the dense parent on the same sentences."
    )
    return Table(caption, ["attack", "", *_head(run)], rows, text=(0, 1))


def missing(run: Gathered) -> Table | None:
    """Sets that were asked for and cannot be had, with what adds them; and where the others came from."""
    found = next((point.reliability for point in run.points if point.reliability), None)
    if found is None:
        return None
    rows = [
        [escape(name), escape(item["axis"]), "<b>missing</b>", escape(item["about"]), escape(item["add"])]
        for name, item in found["missing"].items()
    ]
    rows += [
        [escape(name), escape(item["axis"]), "there", escape(item["about"]), escape(item["source"])]
        for name, item in found["sets"].items()
    ]
    return Table(
        "Sets: what is missing and what adds it, what is there and where it came from.",
        ["set", "axis", "", "what it is", "from, or how to add it"],
        rows,
        text=range(5),
    )


# ---------------------------------------------------------------- figures


def bars(run: Gathered) -> list[str]:
    """The axes as bars, the last stage of each variant beside the dense parent; ticks are chance."""
    shown = [
        (task, metric, label)
        for task, (label, metric, _) in AXES.items()
        if not task.endswith(("_drop", "_gain")) and run.dense.score(task, metric)
    ]
    if not shown:
        return []
    points = [run.dense, *(found[-1] for v in run.variants if (found := [p for p in run.of(v) if p.scores]))]

    def draw(_figure: Any, plot: Any) -> None:
        width = 0.84 / len(points)
        for i, point in enumerate(points):
            color = SOFT if point.variant is None else variant_color(run, point.variant)
            for at, (task, metric, _) in enumerate(shown):
                score = point.score(task, metric)
                if not score:
                    continue
                y = at + (i - (len(points) - 1) / 2) * width
                label = point.label if at == 0 else None
                plot.barh(y, 100 * score["value"], width * 0.9, color=color, alpha=0.8, label=label)
                if score["ci_low"] is not None:
                    plot.plot(
                        [100 * score["ci_low"], 100 * score["ci_high"]], [y, y], color=INK, linewidth=0.8
                    )
                if score["chance"] is not None:
                    plot.plot(
                        [100 * score["chance"]] * 2,
                        [y - width / 2, y + width / 2],
                        color=INK,
                        linewidth=1.4,
                        linestyle=":",
                    )
        plot.set_yticks(range(len(shown)), [label for _, _, label in shown])
        plot.invert_yaxis()
        plot.grid(visible=False, axis="y")
        plot.set_xlim(0, 100)
        plot.set_xlabel("%")
        plot.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2, handlelength=1)

    words = "; ".join(
        f"{label}: "
        + ", ".join(f"{p.label} {100 * s['value']:.1f} %" for p in points if (s := p.score(task, metric)))
        for task, metric, label in shown
    )
    return [svg(draw, f"Reliability by axis. {words}.", (5.6, 0.55 * len(shown) + 1.2))]


def calibration(run: Gathered) -> list[str]:
    """Accuracy against confidence over all multiple-choice tasks of the suite, one panel per model; the diagonal is perfect."""
    return [
        _panel(point, merged(point.reliability["bins"]))
        for point in run.points
        if point.reliability and point.reliability["bins"]
    ]


def merged(bins: dict[str, Sequence[dict[str, float]]]) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, items) of each bin, over all tasks."""
    sums: dict[int, list[float]] = {}
    for cells in bins.values():
        for cell in cells:
            total = sums.setdefault(bin_of(cell["confidence"]), [0.0, 0.0, 0.0])
            for i, value in enumerate(
                (cell["confidence"] * cell["n"], cell["accuracy"] * cell["n"], cell["n"])
            ):
                total[i] += value
    return [(c / n, a / n, round(n)) for _, (c, a, n) in sorted(sums.items())]


def _panel(point: Point, cells: Sequence[tuple[float, float, int]]) -> str:
    def draw(_figure: Any, plot: Any) -> None:
        plot.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
        most = max(n for _, _, n in cells)
        plot.plot([c for c, _, _ in cells], [a for _, a, _ in cells], color=INK, linewidth=0.8)
        plot.scatter(
            [c for c, _, _ in cells],
            [a for _, a, _ in cells],
            [8 + 60 * n / most for _, _, n in cells],
            color=INK,
        )
        plot.set_xlim(0, 1)
        plot.set_ylim(0, 1)
        plot.set_title(point.label)
        plot.set_xlabel("confidence")
        plot.set_ylabel("accuracy")

    words = "; ".join(f"confidence {c:.2f}: accuracy {a:.2f} ({n} items)" for c, a, n in cells)
    return svg(draw, f"Calibration of {point.label}. {words}.", (2.9, 2.9))


# ---------------------------------------------------------------- cells


def _names(run: Gathered, prefix: str) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for point in run.points:
        found |= dict.fromkeys(key for key in point.scores if key[0].startswith(prefix))
    return list(found)


def _cells(run: Gathered, task: str, metric: str) -> tuple[str, list[str]]:
    """Chance in %, and each model's value with the difference to the dense parent's."""
    chance, own = floors([point.score(task, metric) for point in run.points], 1, 100)
    cells = []
    for point, words in zip(run.points, own, strict=True):
        cells.append(interval(point.score(task, metric), 1, 100) + words)
        if point.variant is not None:
            cells.append(_delta(point, task, metric))
    return chance, cells


def _delta(point: Point, task: str, metric: str) -> str:
    return interval(point.paired.get((task, metric)), 1, 100)


def _label(point: Point) -> str:
    return escape(point.label).replace("/", "<br>")


def _head(run: Gathered) -> list[str]:
    head = []
    for point in run.points:
        head.append(_label(point))
        if point.variant is not None:
            head.append("&Delta;")
    return head
