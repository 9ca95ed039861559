"""An unbiased sample of the co-activation graph, drawn from activations without forming the F x F matrix.

For every neuron i, q neighbours are drawn: a token t on which i is active, with probability proportional to |active(t)| - 1, then another
neuron j active on t, uniformly. That draws j with probability w_ij / d_i, where w_ij counts common activations and d_i is the weighted
degree. A pair drawn c times gets the weight c / (q (1/d_i + 1/d_j)), whose expectation is w_ij; excess weights x_ij are scored exactly for
the sampled pairs (bitwise AND and popcount) and weigh c x_ij / (q w_ij (1/d_i + 1/d_j)).
Memory: O(F q) plus one shard of tokens and the packed bits. Importance sampling by 1/d_i + 1/d_j follows effective resistances of dense
graphs; for what any such sketch must cost, see Cheng et al. (PODS 2024, arXiv 2406.13231).

Shapes: T tokens, F neurons, N draws.
"""

import numpy as np
from scipy import sparse

from moesaic.experts.bits import Bits


def degrees(active: Bits) -> tuple[np.ndarray, np.ndarray]:
    """How often each neuron fires, and its weighted degree per shard [shards, F]: the sum of |active(t)| - 1 over its tokens."""
    fired = np.zeros(active.width, dtype=np.int64)
    per_shard = []
    for on_TF in active.shards():
        others_T = on_TF.sum(axis=1, dtype=np.int64) - 1
        fired += on_TF.sum(axis=0, dtype=np.int64)
        per_shard.append(on_TF.T.astype(np.float64) @ np.maximum(others_T, 0))
    return fired, np.stack(per_shard)


def sample(active: Bits, draws: int, excess: bool, seed: int) -> sparse.csr_matrix:
    """A symmetric sparse graph whose expected weights are the co-activation counts, or their excess over independence.

    Args:
        draws: q, neighbours drawn for each neuron. excess: weigh by max(0, C_ij - f_i f_j / T) instead of C_ij.
    """
    rng = np.random.default_rng(seed)
    fired_F, degree_SF = degrees(active)
    degree_F = degree_SF.sum(axis=0)
    first, second = _pairs(active, degree_SF, degree_F, draws, rng)
    low, high = np.minimum(first, second), np.maximum(first, second)
    keys, times = np.unique(low * active.width + high, return_counts=True)
    i, j = keys // active.width, keys % active.width
    rate = draws * (1.0 / degree_F[i] + 1.0 / degree_F[j])
    values = times / rate
    if excess:
        together = common(active, i, j)
        values *= np.maximum(0.0, together - fired_F[i] * fired_F[j] / active.tokens) / together
    kept = values > 0
    rows, columns = np.concatenate([i[kept], j[kept]]), np.concatenate([j[kept], i[kept]])
    shape = (active.width, active.width)
    return sparse.csr_matrix((np.concatenate([values[kept]] * 2), (rows, columns)), shape=shape)


def common(active: Bits, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Exact number of tokens on which both neurons of each pair are active."""
    out = np.zeros(len(i), dtype=np.int64)
    for on_TF in active.shards():
        bits_FT = np.packbits(on_TF.T, axis=1)
        for start in range(0, len(i), 65_536):
            part = slice(start, start + 65_536)
            out[part] += np.bitwise_count(bits_FT[i[part]] & bits_FT[j[part]]).sum(axis=1, dtype=np.int64)
    return out


def _pairs(
    active: Bits, degree_SF: np.ndarray, degree_F: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """All draws (i, j). The shard of each draw is chosen first, so that one pass over the shards suffices."""
    living = np.flatnonzero(degree_F > 0)
    counts_NS = rng.multinomial(draws, (degree_SF[:, living] / degree_F[living]).T)
    first, second = [], []
    for shard, on_TF in enumerate(active.shards()):
        neuron = np.repeat(living, counts_NS[:, shard])
        if not len(neuron):
            continue
        others_T = np.maximum(on_TF.sum(axis=1, dtype=np.int64) - 1, 0)
        # entries sorted by neuron, with a running sum of |active(t)| - 1: a uniform point of a neuron's stretch is a token
        owner, token = np.nonzero(on_TF.T)
        running = np.cumsum(others_T[token])
        ends = np.concatenate([[0], running[np.cumsum(np.bincount(owner, minlength=active.width)) - 1]])
        ends[1:][np.cumsum(np.bincount(owner, minlength=active.width)) == 0] = 0
        point = ends[neuron] + rng.random(len(neuron)) * (ends[neuron + 1] - ends[neuron])
        chosen = token[np.searchsorted(running, np.floor(point).astype(np.int64), side="right")]
        # entries sorted by token: another active neuron of that token, uniformly
        place, column = np.nonzero(on_TF)
        start_T = np.searchsorted(place, np.arange(len(on_TF)))
        own = np.searchsorted(place * active.width + column, chosen * active.width + neuron) - start_T[chosen]
        other = np.floor(rng.random(len(neuron)) * others_T[chosen]).astype(np.int64)
        other += other >= own
        first.append(neuron)
        second.append(column[start_T[chosen] + other])
    return np.concatenate(first), np.concatenate(second)
