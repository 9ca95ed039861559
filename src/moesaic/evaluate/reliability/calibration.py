"""Calibration of multiple-choice answers: expected calibration error with its interval and its noise level, and the bins of the plot.

Shapes: N items, F forms of each item, R resamples, I = F * N answers.
"""

from collections.abc import Sequence

import numpy as np

from moesaic.evaluate import bootstrap
from moesaic.evaluate.harness import Metric, TaskScores
from moesaic.evaluate.reliability import metrics

FLOOR_DRAWS = 200
"""Draws of right or wrong for what a perfectly calibrated model shows."""


def expected_error(
    blocks: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int, rng: np.random.Generator
) -> Metric:
    """ECE over all items with its interval, and as chance what a perfectly calibrated model would show on so few.

    Args:
        blocks: confidence and right [F, N] of a set's N items in F forms; an item is drawn with all its forms.
    """
    confidence_I, right_I = (np.concatenate([block[i].ravel() for block in blocks]) for i in (0, 1))
    value = float(binned_error(confidence_I[None], right_I[None])[0])
    ideal = (rng.random((FLOOR_DRAWS, len(confidence_I))) < confidence_I).astype(np.float64)
    floor = float(binned_error(np.broadcast_to(confidence_I, ideal.shape), ideal).mean())
    if all(block[0].shape[1] < 2 for block in blocks):
        return Metric("ece", bootstrap.Estimate(value, None, None, len(confidence_I)), floor)
    rows = [rng.integers(0, block[0].shape[1], size=(resamples, block[0].shape[1])) for block in blocks]
    size = max(1, bootstrap.CHUNK // max(1, len(confidence_I)))
    samples = np.concatenate([
        binned_error(*_drawn(blocks, [rows_RN[begin : begin + size] for rows_RN in rows]))
        for begin in range(0, resamples, size)
    ])  # fmt: skip
    return Metric(
        "ece", bootstrap.Estimate(value, *bootstrap.around(value, samples), len(confidence_I)), floor
    )


def _drawn(
    blocks: Sequence[tuple[np.ndarray, np.ndarray]], rows: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and right of some resamples [r, I]. Args: rows: of each block, [r, N]."""
    confidence, right = (
        np.concatenate(
            [
                block[i][:, rows_rN].swapaxes(0, 1).reshape(len(rows_rN), -1)
                for block, rows_rN in zip(blocks, rows, strict=True)
            ],
            axis=1,
        )
        for i in (0, 1)
    )
    return confidence, right


def binned_error(confidence_RN: np.ndarray, right_RN: np.ndarray) -> np.ndarray:
    """metrics.ece of each row, [R]."""
    bins = metrics.BINS
    cell_RN = np.clip(np.ceil(confidence_RN * bins).astype(np.int64) - 1, 0, bins - 1)
    rows, n = cell_RN.shape
    index = (cell_RN + bins * np.arange(rows)[:, None]).ravel()
    gap = np.bincount(index, weights=(confidence_RN - right_RN).ravel(), minlength=rows * bins)
    return np.asarray(np.abs(gap.reshape(rows, bins)).sum(1) / n)


def reliability_bins(item: TaskScores) -> list[dict[str, float]]:
    """For the plot: items, mean confidence and accuracy of each bin that holds any."""
    confidence, right = item.items["confidence"], item.items["acc"]
    cells = np.array([metrics.bin_of(float(value)) for value in confidence])
    return [
        {
            "n": int((cells == i).sum()),
            "confidence": round(float(confidence[cells == i].mean()), 6),
            "accuracy": round(float(right[cells == i].mean()), 6),
        }
        for i in range(metrics.BINS)
        if (cells == i).any()
    ]
