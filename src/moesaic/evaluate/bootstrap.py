"""Seeded bootstrap intervals, 95 %, by resampling items with replacement (percentile method)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n items is drawn in each resample, [resamples, n]."""
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=resamples)


def ratio(numerator: np.ndarray, denominator: np.ndarray, resamples: int, seed: int) -> Interval:
    """sum(numerator) / sum(denominator), resampling pairs: for bits per byte and perplexity, whose items differ in length."""
    draws = _draws(len(numerator), resamples, seed)
    found = (draws @ numerator) / (draws @ denominator)
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(numerator.sum() / denominator.sum()), float(low), float(high), len(numerator))


def mean(values: np.ndarray, resamples: int, seed: int) -> Interval:
    """Mean over items."""
    return ratio(values.astype(float), np.ones(len(values)), resamples, seed)


def macro(groups: list[tuple[np.ndarray, np.ndarray]], resamples: int, seed: int) -> Interval:
    """Mean over groups of each group's ratio; items are resampled within their group."""
    found, value = np.zeros(resamples), 0.0
    for index, (numerator, denominator) in enumerate(groups):
        draws = _draws(len(numerator), resamples, seed + index)
        found += (draws @ numerator) / (draws @ denominator) / len(groups)
        value += float(numerator.sum() / denominator.sum()) / len(groups)
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(value, float(low), float(high), sum(len(numerator) for numerator, _ in groups))


def difference(a: np.ndarray, b: np.ndarray, resamples: int, seed: int) -> Interval:
    """Mean of a - b over the same items (paired)."""
    assert len(a) == len(b), "a paired bootstrap needs the same items in both"
    return mean(a.astype(float) - b.astype(float), resamples, seed)
