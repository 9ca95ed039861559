"""The mixture's part of the report: weights over time, what moved them (distances, gate loads), and held-out loss by dataset."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from moesaic.report.cells import NOTHING, number
from moesaic.report.gather import Gathered, Point
from moesaic.report.svg import PAPER, SERIES, svg
from moesaic.report.tables import Table

WEIGHT, LOAD = "mixture/weight/", "mixture/load/"


def datasets(point: Point) -> list[str]:
    """The datasets that a stage drew from."""
    return sorted(key.removeprefix(WEIGHT) for key in point.curves if key.startswith(WEIGHT))


def moved(point: Point) -> bool:
    """True when the weights changed, or were looked at."""
    return any(
        len({value for _, value in point.curves[WEIGHT + name]}) > 1 for name in datasets(point)
    ) or any(key.startswith("mixture/distance/") for key in point.curves)


def weights(run: Gathered) -> list[str]:
    """Weights by optimizer step, one panel per stage whose mixture moves."""
    return [_weights(point) for point in run.points if moved(point)]


def _weights(point: Point) -> str:
    names = datasets(point)

    def draw(_figure: Any, axes: Any) -> None:
        for i, name in enumerate(names):
            steps, values = zip(*point.curves[WEIGHT + name], strict=True)
            axes.step(steps, values, where="post", color=SERIES[i % len(SERIES)], label=name)
        axes.set_title(point.label)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("weight")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=1.2)

    words = "; ".join(
        f"{name} from {point.curves[WEIGHT + name][0][1]:.3f} to {point.curves[WEIGHT + name][-1][1]:.3f}"
        for name in names
    )
    return svg(draw, f"Weights of the datasets, {point.label}: {words}.", (4.4, 3.1))


def distances(run: Gathered) -> list[str]:
    """Distances between the datasets at the last update, one panel per stage."""
    found = [(point, _distances(point)) for point in run.points]
    return [_matrix(point, names, matrix) for point, (names, matrix) in found if names]


def _distances(point: Point) -> tuple[list[str], np.ndarray]:
    """Names and matrix [D, D]; no names when there were no updates."""
    every = datasets(point)
    pairs = {
        (one, other): point.curves[key][-1][1]
        for one in every
        for other in every
        if (key := f"mixture/distance/{one}/{other}") in point.curves
    }
    names = [name for name in every if any(name in pair for pair in pairs)]
    matrix = np.zeros((len(names), len(names)))
    for (one, other), value in pairs.items():
        i, j = names.index(one), names.index(other)
        matrix[i, j] = matrix[j, i] = value
    return names, matrix


def _matrix(point: Point, names: Sequence[str], matrix: np.ndarray) -> str:
    top = float(matrix.max()) or 1.0

    def draw(_figure: Any, axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colors = LinearSegmentedColormap.from_list("distance", ["#e9e6dc", "#7fb0d8", "#1b5e9e"])
        axes.imshow(matrix, cmap=colors, vmin=0, vmax=top, interpolation="none")
        for i in range(len(names)):
            for j in range(len(names)):
                if i != j:
                    color = PAPER if matrix[i, j] > 0.6 * top else "#111111"
                    axes.text(j, i, f"{matrix[i, j]:.3f}", ha="center", va="center", color=color, fontsize=7)
        axes.grid(visible=False)
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(point.label)

    pairs = [
        f"{names[i]} and {names[j]} {matrix[i, j]:.3f}"
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    size = 2.0 + 0.32 * len(names)
    return svg(draw, f"Distance of the datasets, {point.label}: {'; '.join(pairs)}.", (size + 0.5, size))


def loads(run: Gathered) -> list[str]:
    """Gate load of each dataset at the last update over an even share, one panel per stage."""
    out = []
    for point in run.points:
        names = [name for name in datasets(point) if f"{LOAD}{name}/expert_0" in point.curves]
        if names:
            experts = sum(key.startswith(f"{LOAD}{names[0]}/expert_") for key in point.curves)
            rows = [
                [point.curves[f"{LOAD}{name}/expert_{e}"][-1][1] * experts for e in range(experts)]
                for name in names
            ]
            out.append(_loads(point, names, np.array(rows)))
    return out


def _loads(point: Point, names: Sequence[str], values: np.ndarray) -> str:
    def draw(figure: Any, axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colors = LinearSegmentedColormap.from_list(
            "load", ["#1b5e9e", "#7fb0d8", "#e9e6dc", "#eda35f", "#b5410e"]
        )
        shown = np.log2(np.clip(values, 0.25, 4))
        image = axes.imshow(shown, cmap=colors, vmin=-2, vmax=2, aspect="auto", interpolation="none")
        axes.grid(visible=False)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("expert")
        axes.set_title(point.label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        bar = figure.colorbar(image, ax=axes, ticks=[-2, -1, 0, 1, 2], pad=0.02, aspect=12)
        bar.ax.set_yticklabels(["≤ ¼", "½", "1", "2", "≥ 4"])
        bar.outline.set_visible(False)

    words = "; ".join(
        f"{name} from {row.min():.2f} to {row.max():.2f} (expert {row.argmax()})"
        for name, row in zip(names, values, strict=True)
    )
    label = f"Gate load of the datasets over an even share, {point.label}: {words}."
    return svg(draw, label, (4.4, 1.2 + 0.24 * len(names)))


def held_out(run: Gathered) -> list[Table]:
    """Validation loss by dataset at the end of a stage, one table for each stage that has several datasets."""
    out = []
    prefix = "valid/loss/"
    for stage in run.stages:
        points = [p for p in run.points if p.stage == stage and p.variant]
        names = sorted(
            {key.removeprefix(prefix) for p in points for key in p.curves if key.startswith(prefix)}
        )
        if len(names) < 2:
            continue
        rows = []
        for point in points:
            last = {name: point.curves.get(prefix + name) for name in names}
            values = [found[-1][1] for found in last.values() if found]
            cells = [number(found[-1][1], 3) if found else NOTHING for found in last.values()]
            mean = number(float(np.mean(values)), 3) if len(values) == len(names) else NOTHING
            rows.append([escape(str(point.variant)), *cells, mean])
        caption = f"Validation loss by dataset at the end of {stage}, nats per target token."
        out.append(Table(caption, ["variant", *map(escape, names), "mean"], rows))
    return out
