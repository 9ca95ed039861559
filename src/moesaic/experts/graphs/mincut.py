"""How well a graph holds together: its minimum cut, estimated by local queries (degree, i-th neighbour).

Edges are sampled at the rate p = c ln n / (eps^2 k); a minimum cut of the sample, divided by p, is within 1 +- eps of k with high
probability (Karger). Queries: about m p, to be compared with the lower bound min(m, m / (eps^2 k)) of Cheng et al. (PODS 2024,
arXiv 2406.13231). For dense co-activation graphs the minimum cut is normally the smallest degree; useful as a check that a graph does not
fall apart, and as a certificate: any split into E parts cuts at least E k / 2.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class MinimumCut:
    """An estimate and what it cost."""

    value: float
    rate: float
    """Sampling probability of an edge; 1 reads the whole graph."""
    queries: int


def estimate(
    graph: sparse.csr_matrix, guess: float, epsilon: float, seed: int, constant: float = 1.0
) -> MinimumCut:
    """Minimum cut of an unweighted graph (all weights 1).

    Args:
        guess: the cut's size within a factor of 2. epsilon: relative error asked for. constant: c of the sampling rate.
    """
    count = graph.shape[0]
    rate = min(1.0, constant * math.log(count) / (epsilon**2 * guess))
    rng = np.random.default_rng(seed)
    upper = sparse.triu(graph, k=1).tocsr()
    # the i-th neighbour query: each vertex draws how many of its later neighbours to ask for, then asks for them
    degree = np.diff(upper.indptr)
    asked = rng.binomial(degree, rate)
    sampled = np.zeros((count, count))
    for vertex in np.flatnonzero(asked):
        places = rng.choice(degree[vertex], size=asked[vertex], replace=False)
        others = upper.indices[upper.indptr[vertex] + places]
        sampled[vertex, others] = sampled[others, vertex] = 1.0
    queries = int(asked.sum()) + (count if rate < 1 else 0)
    return MinimumCut(exact(sampled) / rate, rate, queries)


def exact(weights_VV: np.ndarray) -> float:
    """Minimum cut of a weighted graph, given as a symmetric matrix with an empty diagonal; 0 when it is not connected.

    In a maximum-adjacency order a vertex and its predecessor are connected by at least the weight between the vertex and all before it
    (Nagamochi and Ibaraki 1992), so every pair for which that is not below the smallest cut known so far can be merged.
    """
    weights = weights_VV.astype(float)
    best = math.inf
    while len(weights) > 1:
        best = min(best, float(weights.sum(axis=1).min()))
        count = len(weights)
        order, strength = np.zeros(count, dtype=int), np.zeros(count)
        to_chosen = np.zeros(count)
        for place in range(count):
            vertex = int(to_chosen.argmax())
            order[place], strength[place] = vertex, to_chosen[vertex]
            to_chosen += weights[vertex]
            to_chosen[order[: place + 1]] = -1.0
        group = np.zeros(count, dtype=int)
        group[order] = np.cumsum(np.concatenate([[0], (strength[1:] < best).astype(int)]))
        member = sparse.csr_matrix((np.ones(count), (np.arange(count), group)))
        weights = np.asarray(member.T @ (member.T @ weights).T)
        np.fill_diagonal(weights, 0.0)
    return best
