"""Pictures of learned kernels, for the report and for MLflow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from moesaic.model.adapters.analytic import Bank


def kernels(bank_Nkk: Tensor, titles: Sequence[str] | None = None, columns: int = 8, most: int = 64) -> Any:
    """A matplotlib figure of kernels, each scaled to its own largest value: red is positive, blue negative, white zero.

    Args:
        titles: a line above each, such as its kind.
        most: kernels shown at most; the figure says how many there are.
    """
    from matplotlib.figure import Figure

    shown = bank_Nkk.detach().float().cpu().numpy()[:most]
    columns = min(columns, max(1, len(shown)))
    rows = -(-max(1, len(shown)) // columns)
    figure = Figure(figsize=(1.15 * columns, 1.3 * rows + 0.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for i, (axis, kernel) in enumerate(zip(axes, shown, strict=False)):
        largest = float(np.abs(kernel).max()) or 1.0
        axis.imshow(kernel, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
        if titles is not None:
            axis.set_title(titles[i], fontsize=6)
    if len(bank_Nkk) > most:
        figure.suptitle(f"{most} of {len(bank_Nkk)} kernels", fontsize=8)
    return figure


def bank(found: Bank, **options: Any) -> Any:
    """A figure of a bank; above each kernel its kind, and what its function's parameters say."""
    return kernels(found(), [caption(row) for row in found.table()], **options)


def caption(row: dict[str, Any]) -> str:
    """Kind, orientation in degrees and wavelength or width in taps, as far as the kind has them."""
    words = [row["kind"]]
    if "angle" in row:
        words.append(f"{np.degrees(row['angle']) % 180:.0f}°")
    for name in ("wavelength", "along", "scale"):
        if name in row:
            words.append(f"{row[name]:.1f}")
            break
    return " ".join(words)
