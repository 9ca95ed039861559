"""The figures of the report, each a list of SVG panels with a text equivalent."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moesaic.report.cells import short
from moesaic.report.gather import Gathered, Point
from moesaic.report.svg import INK, PAPER, SERIES, SOFT, log_if_wide, smoothed, svg

MARKERS = {"dense": "*", "construct": "o", "pretrain": "s", "tune": "^", "preference": "P", "distill": "D"}


# ---------------------------------------------------------------- quality


def tradeoff(run: Gathered, found: Sequence[dict[str, Any]]) -> list[str]:
    """Bits per byte, and multiple choice, against active parameters."""
    out = []
    for key, title, unit, scale in (
        ("bits_per_byte", "Trained domains", "bits per byte (lower is better)", 1.0),
        ("accuracy", "Multiple choice", "accuracy, % (higher is better)", 100.0),
    ):
        shown = [row for row in found if row[key]]
        if not shown:
            continue

        def draw(
            _figure: Any,
            axes: Any,
            shown: Any = shown,
            key: str = key,
            scale: float = scale,
            words: Any = (title, unit),
        ) -> None:
            for i, variant in enumerate([None, *run.variants]):
                rows = [row for row in shown if row["variant"] == variant]
                xs = [row["active_parameters"] / 1e6 for row in rows]
                ys = [row[key]["value"] * scale for row in rows]
                color = INK if variant is None else variant_color(run, variant)
                axes.plot(xs, ys, color=color, linewidth=0.7, alpha=0.6)
                for x, y, row in zip(xs, ys, rows, strict=True):
                    low, high = row[key]["ci_low"], row[key]["ci_high"]
                    if low is not None:
                        axes.plot([x, x], [low * scale, high * scale], color=color, linewidth=1, alpha=0.7)
                    size = 11 if row["stage"] == "dense" else 6
                    axes.plot(
                        [x], [y], MARKERS[row["stage"]], color=color, markersize=size, markeredgecolor=PAPER
                    )
                axes.plot([], [], "*" if i == 0 else "-", color=color, label=variant or "dense parent")
            for stage in run.stages:
                axes.plot([], [], MARKERS[stage], color=SOFT, markersize=5, label=stage)
            chance = shown[0][key]["chance"]
            if chance is not None:
                axes.axhline(chance * scale, color=SOFT, linewidth=0.8, linestyle=":")
                axes.annotate(
                    "chance",
                    (0.01, chance * scale),
                    xycoords=("axes fraction", "data"),
                    color=SOFT,
                    fontsize=8,
                    va="bottom",
                )
            axes.set_title(words[0])
            axes.set_xlabel("active parameters, millions")
            axes.set_ylabel(words[1])
            axes.margins(x=0.08)
            log_if_wide(axes, [row[key]["value"] * scale for row in shown])
            axes.legend(ncol=1, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2)

        values = "; ".join(
            f"{row['label']} {row[key]['value'] * scale:.3g} at {short(row['active_parameters'])}"
            for row in shown
        )
        out.append(svg(draw, f"{title}, {unit} against active parameters: {values}.", (5.6, 3.3)))
    return out


def by_domain(run: Gathered) -> list[str]:
    """Bits per byte by domain: bars of all stages beside the dense parent, one panel per variant."""
    domains = run.domains
    if not domains or not run.dense.scores:
        return []
    top = _top(run, domains)
    out = []
    for variant in run.variants:
        points = [run.dense, *(point for point in run.of(variant) if point.scores)]
        if len(points) == 1:
            continue

        def draw(_figure: Any, axes: Any, points: Any = points, variant: str = variant) -> None:
            width = 0.84 / len(points)
            for i, point in enumerate(points):
                for at, domain in enumerate(domains):
                    score = point.score(f"text/{domain}", "bits_per_byte")
                    if not score:
                        continue
                    x = at + (i - (len(points) - 1) / 2) * width
                    color = SOFT if i == 0 else variant_color(run, variant)
                    alpha = 0.75 if i == 0 else 0.35 + 0.6 * i / (len(points) - 1)
                    label = (point.stage if i else "dense parent") if at == 0 else None
                    axes.bar(x, min(score["value"], top), width * 0.92, color=color, alpha=alpha, label=label)
                    if score["value"] > top:
                        axes.annotate(
                            f"{score['value']:.1f} ↑", (x, top), (0, -2), textcoords="offset points",
                            rotation=90, va="top", ha="center", fontsize=7,
                        )  # fmt: skip
                    elif score["ci_low"] is not None:
                        axes.plot([x, x], [score["ci_low"], score["ci_high"]], color=INK, linewidth=0.8)
            names = [f"{name}\n(held out)" if name in run.held_out else name for name in domains]
            axes.set_xticks(range(len(domains)), names)
            axes.tick_params(axis="x", length=0)
            axes.grid(visible=False, axis="x")
            axes.set_ylim(0, top * 1.04)
            axes.set_title(variant)
            axes.set_ylabel("bits per byte")
            axes.legend(
                ncol=len(points),
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                handlelength=1,
                columnspacing=1,
            )

        last = points[-1]
        values = [
            (d, last.score(f"text/{d}", "bits_per_byte"), run.dense.score(f"text/{d}", "bits_per_byte"))
            for d in domains
        ]
        words = "; ".join(f"{d} {s['value']:.3f}, dense {p['value']:.3f}" for d, s, p in values if s and p)
        out.append(svg(draw, f"Bits per byte by domain, {variant}; after {last.stage}: {words}.", (5.6, 3.2)))
    return out


def _top(run: Gathered, domains: Sequence[str]) -> float:
    """Where the bars end: a split that broke the model would flatten all others, so its bars are cut and labelled."""
    found = [(p, p.score(f"text/{d}", "bits_per_byte")) for p in run.points for d in domains]
    every = [(p, s["ci_high"] or s["value"]) for p, s in found if s]
    parent = max((high for p, high in every if p.variant is None), default=1.0)
    return float(min(max(high for _, high in every), 2.5 * parent))


# ---------------------------------------------------------------- curves


def curves(run: Gathered, key: str, title: str, unit: str) -> list[str]:
    """One panel per training stage with a line per variant."""
    out = []
    for stage in run.stages:
        points = [p for p in run.points if p.stage == stage and p.variant and p.curves.get(key)]
        if points:
            lines = [(str(p.variant), p.curves[key], variant_color(run, str(p.variant))) for p in points]
            out.append(_lines(f"{title}: {stage}", unit, lines))
    return out


def domain_curves(run: Gathered) -> list[str]:
    """Training loss by domain, one panel per variant and stage that has more than one domain."""
    prefix = "train/loss/domain/"
    order = {name: i for i, name in enumerate(run.domains)}
    out = []
    for point in run.points:
        names = sorted(key.removeprefix(prefix) for key in point.curves if key.startswith(prefix))
        names.sort(key=lambda name: order.get(name, len(order)))
        if len(names) > 1:
            lines = [
                (name, point.curves[prefix + name], SERIES[i % len(SERIES)]) for i, name in enumerate(names)
            ]
            out.append(_lines(f"{point.variant}: {point.stage}, by domain", "nats per token", lines))
    return out


def _lines(title: str, unit: str, lines: Sequence[tuple[str, Sequence[tuple[int, float]], str]]) -> str:
    def draw(_figure: Any, axes: Any) -> None:
        for name, values, color in lines:
            steps, smooth = smoothed(values)
            axes.plot(steps, smooth, color=color, label=name, marker="o" if len(steps) == 1 else None)
        axes.set_title(title)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(unit)
        log_if_wide(axes, [value for _, values, _ in lines for value in smoothed(values)[1]], 20.0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(
            ncol=3 if len(lines) > 2 else 2, loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=1.2
        )

    words = "; ".join(
        f"{name} from {values[0][1]:.3f} to {values[-1][1]:.3f} in {values[-1][0]} steps"
        for name, values, _ in lines
    )
    return svg(draw, f"{title}, {unit}: {words}.", (4.4, 3.1))


# ---------------------------------------------------------------- routing


def load_maps(run: Gathered, variant: str) -> list[str]:
    """Expert load of a variant, mean over domains, one map per stage; 1 is an even share."""
    found = [(point, _mean(point)) for point in run.of(variant) if point.routing]
    return [_map(load * load.shape[1], f"{p.variant}: {p.stage}", "mean over domains") for p, load in found]


def deviation_maps(run: Gathered, variant: str) -> list[str]:
    """After the last stage: each domain's load over the mean of the domains; 1 means no specialisation."""
    points = [point for point in run.of(variant) if point.routing]
    if not points:
        return []
    last, mean = points[-1], _mean(points[-1])
    what = f"over the mean of the domains, after {last.stage}"
    shown = [domain for domain in run.domains if domain in last.routing]
    return [
        _map(last.routing[domain] / np.maximum(mean, 1e-9), f"{variant}: {domain}", what) for domain in shown
    ]


def _mean(point: Point) -> np.ndarray:
    """Load, each domain weighing the same [layers, experts]."""
    mean: np.ndarray = np.mean(list(point.routing.values()), axis=0)
    return mean


def _map(values: np.ndarray, title: str, what: str) -> str:
    def draw(figure: Any, axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colors = LinearSegmentedColormap.from_list(
            "load", ["#1b5e9e", "#7fb0d8", "#e9e6dc", "#eda35f", "#b5410e"]
        )
        extent = (-0.5, values.shape[1] - 0.5, values.shape[0] - 0.5, -0.5)
        image = axes.imshow(
            np.log2(np.clip(values, 0.25, 4)),
            cmap=colors,
            vmin=-2,
            vmax=2,
            aspect="auto",
            interpolation="none",
            extent=extent,
        )
        axes.grid(visible=False)
        axes.set_title(title)
        axes.set_xlabel("expert")
        axes.set_ylabel("layer")
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        bar = figure.colorbar(image, ax=axes, ticks=[-2, -1, 0, 1, 2], pad=0.02, aspect=24)
        bar.ax.set_yticklabels(["≤ ¼", "½", "1", "2", "≥ 4"])
        bar.outline.set_visible(False)

    low, high = (np.unravel_index(i, values.shape) for i in (np.nanargmin(values), np.nanargmax(values)))
    label = (
        f"Expert load {what}, {title}: from {values[low]:.2f} (layer {low[0]}, expert {low[1]}) "
        f"to {values[high]:.2f} (layer {high[0]}, expert {high[1]})."
    )
    return svg(draw, label, (2.6, 3.2))


def load_cv(run: Gathered) -> list[str]:
    """Load CV by layer on validation text, one panel per variant with a line per stage."""
    found = {variant: [point for point in run.of(variant) if point.routing] for variant in run.variants}
    every = {
        point.label: _mean(point).std(axis=1) / _mean(point).mean(axis=1)
        for points in found.values()
        for point in points
    }
    if not every:
        return []
    top = max(np.nanmax(values) for values in every.values())

    def panel(variant: str, points: Sequence[Point]) -> str:
        def draw(_figure: Any, axes: Any) -> None:
            for point in points:
                share = run.stages.index(point.stage) / max(1, len(run.stages) - 1)
                values, color = every[point.label], variant_color(run, variant)
                style = {
                    "color": color,
                    "alpha": 0.3 + 0.7 * share,
                    "marker": MARKERS[point.stage],
                    "markersize": 3,
                }
                axes.plot(range(len(values)), values, linewidth=1, label=point.stage, **style)
            axes.set_ylim(0, top * 1.05)
            axes.set_title(f"{variant}: load CV by layer")
            axes.set_xlabel("layer")
            axes.set_ylabel("CV of the expert load (0: even)")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=1.2)

        words = "; ".join(f"{point.stage} {np.nanmean(every[point.label]):.2f}" for point in points)
        return svg(
            draw,
            f"{variant}: coefficient of variation of the expert load by layer; means: {words}.",
            (4.4, 3.1),
        )

    return [panel(variant, points) for variant, points in found.items() if points]


def variant_color(run: Gathered, variant: str) -> str:
    """The colour of a variant in every figure."""
    return SERIES[run.variants.index(variant) % len(SERIES)]
