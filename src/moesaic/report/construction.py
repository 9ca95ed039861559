"""The split before any training: errors, lift over independence and expert placement, from each variant's audit.json."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from moesaic.report.cells import percent
from moesaic.report.gather import Gathered
from moesaic.report.plots import variant_color
from moesaic.report.svg import svg
from moesaic.report.tables import Table

Layers = Sequence[tuple[int, dict[str, Any]]]


def panels(run: Gathered) -> list[str]:
    """Relative output error, lift and expected load CV by layer, a line per variant."""
    found = {variant: list(enumerate(audit.get("layers", []))) for variant, audit in run.audits.items()}
    wanted = (
        ("error", "Output error", "relative, held-out text", None),
        ("lift", "Lift over independence", "0: no signal", ("lift_low", "lift_high")),
        ("load_cv", "Expected load", "CV before training (0: even)", None),
    )
    made = []
    for key, title, unit, band in wanted:
        lines = {
            variant: [(i, item) for i, item in layers if key in item] for variant, layers in found.items()
        }
        lines = {variant: layers for variant, layers in lines.items() if layers}
        if lines:
            means = "; ".join(
                f"{variant} {sum(item[key] for _, item in layers) / len(layers):.3f}"
                for variant, layers in lines.items()
            )
            made.append(
                svg(
                    _draw(run, lines, key, title, unit, band),
                    f"{title} by layer; means: {means}.",
                    (4.4, 3.1),
                )
            )
    return made


def placement(run: Gathered) -> Table | None:
    """Traffic between GPUs by placement of the experts."""
    rows = []
    for variant, audit in run.audits.items():
        for devices, item in audit.get("routing", {}).get("placement", {}).items():
            rows.append(
                [escape(variant), devices, percent(item["round_robin"]), percent(item["minimum_cut"])]
            )
    if not rows:
        return None
    head = ["variant", "GPUs", "contiguous", "minimum cut"]
    return Table(
        "Share of the tokens that change the GPU from one layer to the next, by placement of the experts.",
        head,
        rows,
    )


def families(run: Gathered) -> Table | None:
    """Why each variant has its architecture."""
    rows = [
        [escape(variant), escape(name), escape(reason)]
        for variant, audit in run.audits.items()
        for name, reason in audit.get("family", {}).items()
    ]
    head = ["variant", "architecture", "chosen, possible or not, and why"]
    strong = [i for i, row in enumerate(rows) if row[2].startswith("chosen")]
    return Table("", head, rows, strong=strong, text=(0, 1, 2)) if rows else None


def _draw(
    run: Gathered, lines: Mapping[str, Layers], key: str, title: str, unit: str, band: tuple[str, str] | None
) -> Callable[[Any, Any], None]:
    def draw(_figure: Any, axes: Any) -> None:
        for variant, layers in lines.items():
            color = variant_color(run, variant)
            numbers = [index for index, _ in layers]
            axes.plot(numbers, [item[key] for _, item in layers], linewidth=1.2, color=color, label=variant)
            if band is not None:
                low, high = ([item[name] for _, item in layers] for name in band)
                axes.fill_between(numbers, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(title)
        axes.set_xlabel("layer")
        axes.set_ylabel(unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=1.2)

    return draw
