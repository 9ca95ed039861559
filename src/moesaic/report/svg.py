"""matplotlib to inline SVG: colours become CSS variables, so that figures follow light and dark.

Deterministic: fixed hash salt, no dates. Text stays text. One panel is one SVG, so panels wrap on a phone.
"""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

# Drawn in these colours, then replaced by the variables of page.css.
INK, SOFT, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0501{i:02x}" for i in range(8))
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", PAPER: "paper"} | {
    color: f"c{i}" for i, color in enumerate(SERIES)
}
STYLE = {
    "svg.hashsalt": "moesaic",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}
SMOOTH = 100
"""Curves with more points are shown as running means over a fiftieth of their length."""
MOST_POINTS = 500


def svg(draw: Callable[[Any, Any], None], label: str, size: tuple[float, float] = (4.4, 3.0)) -> str:
    """Draw on new axes; returns an <svg> whose text equivalent is `label`. Size in inches of 72 CSS pixels."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    salt = f"moesaic/{label}"  # ids of clip paths must differ between the figures of a page
    with mpl.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(figure, axes)
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), label)


def _inline(text: str, label: str) -> str:
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: m.group(0) if m.group(1) in used else "", text)
    text = re.sub(r"<g>\s*</g>|<!--.*?-->", "", text)
    text = re.sub(r'\s*<style type="text/css">\*\{[^<]*</style>', "", text)
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    text = re.sub(r"font: ([\d.]+px) 'DejaVu Sans'(?:, [^;\"]*)?", r"font-size: \1", text)
    text = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="([\d.]+)pt"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) xmlns:xlink="[^"]*" ', r"\1 ", text).replace("xlink:href", "href")
    text = re.sub(r' xmlns="http://www.w3.org/2000/svg" version="1.1"', "", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def log_if_wide(axes: Any, values: Sequence[float], factor: float = 3.0) -> None:
    """A logarithmic axis with plain numbers where the values span more than `factor`."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

    low, high = min(values), max(values)
    if low > 0 and high > factor * low:
        axes.set_yscale("log")
        steps = [
            n * 10.0**k
            for k in range(-6, 7)
            for n in ((1, 2, 5) if high > 12 * low else (1, 1.5, 2, 3, 4, 5, 7))
        ]
        axes.yaxis.set_major_locator(
            FixedLocator([step for step in steps if low / 1.5 <= step <= high * 1.5])
        )
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.set_ylim(low / 1.12, high * 1.12)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))


def smoothed(values: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; running means when there are many points, and at most MOST_POINTS of them."""
    steps, found = np.array([v[0] for v in values], float), np.array([v[1] for v in values], float)
    if len(found) > SMOOTH:
        window = max(2, len(found) // 50)
        kernel = np.ones(window) / window
        found, steps = np.convolve(found, kernel, "valid"), steps[window - 1 :]
        keep = np.unique(np.linspace(0, len(found) - 1, min(MOST_POINTS, len(found))).round().astype(int))
        found, steps = found[keep], steps[keep]
    return steps, found
