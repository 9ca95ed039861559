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
    import networkx

    count = graph.shape[0]
    rate = min(1.0, constant * math.log(count) / (epsilon**2 * guess))
    rng = np.random.default_rng(seed)
    upper = sparse.triu(graph, k=1).tocsr()
    # the i-th neighbour query: each vertex draws how many of its later neighbours to ask for, then asks for them
    degree = np.diff(upper.indptr)
    asked = rng.binomial(degree, rate)
    sampled = networkx.Graph()
    sampled.add_nodes_from(range(count))
    for vertex in np.flatnonzero(asked):
        places = rng.choice(degree[vertex], size=asked[vertex], replace=False)
        sampled.add_edges_from(
            (int(vertex), int(other)) for other in upper.indices[upper.indptr[vertex] + places]
        )
    queries = int(asked.sum()) + (count if rate < 1 else 0)
    if not networkx.is_connected(sampled):
        return MinimumCut(0.0, rate, queries)
    value, _ = networkx.stoer_wagner(sampled)
    return MinimumCut(value / rate, rate, queries)
