"""Bootstrap intervals, vectorised: resample the things that were measured (blocks, items), read off the 2.5 and 97.5 percentiles.

Everything measured is a ratio of sums (nats / bytes, correct / items), or the mean of such ratios over strata (domains, tasks).
Shapes: N units of a stratum, C columns of numbers per unit, R resamples.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = (2.5, 97.5)
CHUNK = 2_000_000
"""Most entries of a resampling matrix held at once."""

Stratum = tuple[np.ndarray, np.ndarray]
"""Numerators [N] and denominators [N] of the units of one domain or task."""
Part = tuple[float, Stratum]
"""A ratio of sums and its weight in a sum of several."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; no interval (None) where a single unit leaves nothing to resample."""

    value: float
    low: float | None
    high: float | None
    n: int


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers that depend on the seed and on what they are for, not on what was drawn before."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def resampled_sums(columns_CN: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Sums of each column over N units drawn with replacement, [R, C]; all columns see the same draws."""
    n = columns_CN.shape[1]
    columns_NC = np.asarray(columns_CN, dtype=np.float64).T
    parts = []
    step = max(1, CHUNK // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts_RN = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        parts.append(counts_RN.astype(np.float64) @ columns_NC)
    return np.concatenate(parts)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of resampled values."""
    low, high = np.percentile(samples, LEVEL)
    return float(low), float(high)


def around(value: float, samples: np.ndarray) -> tuple[float, float]:
    """95 % interval of a figure >= 0 that noise pushes up, such as a divergence: resampling pushes it up once more, so the percentiles
    are moved back by the mean of the samples minus the value. The value itself keeps its bias: put beside it what noise alone gives."""
    low, high = interval(samples - (samples.mean() - value))
    return max(0.0, low), high


def student(values_S: np.ndarray) -> Estimate:
    """Mean over seeds with Student's 95 % interval; no interval of a single seed."""
    count = len(values_S)
    middle = float(np.mean(values_S))
    if count < 2:
        return Estimate(middle, None, None, count)
    from scipy import stats

    half = float(stats.t.ppf(0.975, count - 1) * np.std(values_S, ddof=1) / math.sqrt(count))
    return Estimate(middle, middle - half, middle + half, count)


def stratum(values: np.ndarray, units: Sequence[str] = ()) -> Stratum:
    """[N] values as a stratum whose ratio is their mean. Args: units: what each is resampled with; empty: each for itself."""
    values = np.asarray(values, dtype=np.float64)
    if not len(units):
        return values, np.ones(len(values))
    _, at = np.unique(units, return_inverse=True)
    return np.bincount(at, weights=values), np.bincount(at).astype(np.float64)


def mean(values: np.ndarray, resamples: int, rng: np.random.Generator, rate: bool = False) -> Estimate:
    """Mean of [N] values. Args: rate: as in macro."""
    return macro([stratum(values)], resamples, rng, rate)


def ratio(
    numerators: np.ndarray, denominators: np.ndarray, resamples: int, rng: np.random.Generator
) -> Estimate:
    """Sum of numerators over sum of denominators: the estimator of nats per byte, where blocks differ in bytes."""
    return macro([(numerators, denominators)], resamples, rng)


def macro(
    strata: Sequence[Stratum], resamples: int, rng: np.random.Generator, rate: bool = False
) -> Estimate:
    """Mean over strata of each stratum's ratio of sums; units are resampled within their stratum.

    Args:
        rate: units are yes or no (or between). Where all say the same, resampling has nothing to go by, and the bound beyond is the exact one
            (Clopper and Pearson 1934): none of n leaves up to 1 - 0.025^(1 / n).
    """
    value = float(np.mean([top.sum() / bottom.sum() for top, bottom in strata]))
    n = sum(len(top) for top, _ in strata)
    if all(len(top) < 2 for top, _ in strata):
        return Estimate(value, None, None, n)
    samples_R = np.zeros(resamples)
    for top, bottom in strata:
        sums_RC = resampled_sums(np.stack([top, bottom]), resamples, rng)
        samples_R += sums_RC[:, 0] / sums_RC[:, 1] / len(strata)
    low, high = interval(samples_R)
    if rate and all((top == 0).all() for top, _ in strata):
        high = beyond(strata)
    elif rate and all((top == bottom).all() for top, bottom in strata):
        low = 1 - beyond(strata)
    return Estimate(value, low, high, n)


def beyond(strata: Sequence[Stratum]) -> float:
    """How large the mean over strata may be (at 97.5 %) when none of their units says yes; of unequal strata all count as the smallest."""
    return float(1 - (LEVEL[0] / 100) ** (1 / (len(strata) * min(len(top) for top, _ in strata))))


def difference(
    first: Sequence[Stratum],
    second: Sequence[Stratum],
    resamples: int,
    rng: np.random.Generator,
    rate: bool = False,
) -> Estimate:
    """macro(first) - macro(second) of two models on the same units: both see the same draws, so shared difficulty cancels.

    Args:
        first, second: strata in the same order, with the same units in the same order.
        rate: units are yes or no (or between). Where the two agree on every unit, the interval is what so many units leave open: no
            difference among n leaves up to 1 - 0.025^(1 / n) to either side.
    """
    value, samples_R, n = 0.0, np.zeros(resamples), 0
    # Half of 1 plus the difference of a unit lies between 0 and 1, as a rate.
    apart: list[Part] = []
    for (top_a, bottom_a), (top_b, bottom_b) in zip(first, second, strict=True):
        assert len(top_a) == len(top_b), "paired strata must hold the same units"
        n += len(top_a)
        value += (top_a.sum() / bottom_a.sum() - top_b.sum() / bottom_b.sum()) / len(first)
        sums_RC = resampled_sums(np.stack([top_a, bottom_a, top_b, bottom_b]), resamples, rng)
        samples_R += (sums_RC[:, 0] / sums_RC[:, 1] - sums_RC[:, 2] / sums_RC[:, 3]) / len(first)
        apart.append((2 / len(first), ((bottom_a + top_a - top_b) / 2, bottom_a)))
    if all(len(top) < 2 for top, _ in first):
        return Estimate(float(value), None, None, n)
    return Estimate(float(value), *(_widened(value, samples_R, apart) if rate else interval(samples_R)), n)


def unpaired(parts: Sequence[Part], resamples: int, rng: np.random.Generator) -> Estimate:
    """Weighted sum of rates that share no unit, such as one minus another: each is resampled on its own. Where nothing is left to
    resample, as in difference."""
    value, samples_R = 0.0, np.zeros(resamples)
    for weight, (top, bottom) in parts:
        sums_RC = resampled_sums(np.stack([top, bottom]), resamples, rng)
        value += weight * float(top.sum() / bottom.sum())
        samples_R += weight * sums_RC[:, 0] / sums_RC[:, 1]
    return Estimate(value, *_widened(value, samples_R, parts), sum(len(top) for _, (top, _) in parts))


def _widened(value: float, samples_R: np.ndarray, parts: Sequence[Part]) -> tuple[float, float]:
    """The interval of a weighted sum of rates; without width, what the units leave open: the bound beyond for a unit that says otherwise
    (97.5 %), times how far it could move the sum."""
    low, high = interval(samples_R)
    if high - low > 1e-12:
        return low, high
    open_share = len(parts) * beyond([stratum for _, stratum in parts])
    rates = [(weight, float(top.sum() / bottom.sum())) for weight, (top, bottom) in parts]
    up = max(max(weight * (1 - rate), -weight * rate) for weight, rate in rates)
    down = max(max(weight * rate, -weight * (1 - rate)) for weight, rate in rates)
    return value - down * open_share, value + up * open_share
