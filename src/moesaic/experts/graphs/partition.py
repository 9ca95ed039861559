"""Cut a weighted graph into parts of exactly equal size (METIS through pymetis)."""

import numpy as np
from scipy import sparse

LARGEST_WEIGHT = 10_000
"""METIS takes positive integers; the largest edge weight is scaled to this, smaller where their sum would overflow 31 bits."""


def balanced(graph: sparse.csr_matrix, parts: int, seed: int, seeds: int = 5) -> np.ndarray:
    """Labels [N] with exactly N / parts vertices each; the best cut of several METIS seeds.

    Args:
        graph: symmetric, without self-loops, non-negative weights. seeds: how many METIS seeds are tried.
    """
    count = graph.shape[0]
    assert count % parts == 0, f"{count} vertices do not divide into {parts} parts"
    if parts == 1:
        return np.zeros(count, dtype=np.int64)
    if parts == count:
        return np.arange(count)
    best: tuple[float, np.ndarray] | None = None
    for attempt in range(seeds):
        labels = repair(graph, _metis(graph, parts, seed * 31 + attempt), parts)
        value = cut(graph, labels)
        if best is None or value < best[0]:
            best = (value, labels)
    assert best is not None
    return best[1]


def cut(graph: sparse.csr_matrix, labels_N: np.ndarray) -> float:
    """Total weight of the edges between parts, each edge once."""
    edges = graph.tocoo()
    return float(edges.data[labels_N[edges.row] != labels_N[edges.col]].sum() / 2)


def repair(graph: sparse.csr_matrix, labels_N: np.ndarray, parts: int) -> np.ndarray:
    """Move vertices from parts that are too large to parts that are too small, the cheapest move first."""
    labels = labels_N.astype(np.int64).copy()
    size = len(labels) // parts
    counts = np.bincount(labels, minlength=parts)
    while counts.max() > size:
        member = sparse.csr_matrix(
            (np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), parts)
        )
        affinity_NP = np.asarray((graph @ member).todense())
        loss_NP = affinity_NP[np.arange(len(labels)), labels][:, None] - affinity_NP
        loss_NP[:, counts >= size] = np.inf
        loss_NP[counts[labels] <= size] = np.inf
        vertex, part = np.unravel_index(np.argmin(loss_NP), loss_NP.shape)
        counts[labels[vertex]] -= 1
        counts[part] += 1
        labels[vertex] = part
    return labels


def _metis(graph: sparse.csr_matrix, parts: int, seed: int) -> np.ndarray:
    import pymetis

    graph = graph.tocsr()
    graph.sort_indices()
    largest = float(graph.data.max()) if graph.nnz else 1.0
    scale = min(LARGEST_WEIGHT / largest, (2**31 - 1) / 4 / max(float(graph.data.sum()), 1e-12))
    integers = np.maximum(1, np.rint(graph.data * scale)).astype(np.int64)
    adjacency = pymetis.CSRAdjacency(graph.indptr.astype(np.int64), graph.indices.astype(np.int64))
    options = pymetis.Options(seed=seed % 2**31, ufactor=1)
    _, labels = pymetis.part_graph(
        parts, adjacency=adjacency, eweights=integers, options=options, recursive=False
    )
    return np.asarray(labels)
