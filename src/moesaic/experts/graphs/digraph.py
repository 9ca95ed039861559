"""Balance of a directed graph, and the routing digraph of a model.

A digraph is beta-balanced when w(S, V - S) <= beta w(V - S, S) for every set S of vertices. Cut sketches of it cost about sqrt(beta) / eps
(for-each) or beta / eps^2 (for-all) bits per vertex (Cheng et al., PODS 2024, arXiv 2406.13231).

Shapes: L layers, E experts, V vertices.
"""

import numpy as np


def imbalance(weights_VV: np.ndarray) -> float:
    """Largest |outflow - inflow| over outflow + inflow of a vertex; 0 for an Eulerian digraph, whose beta is exactly 1."""
    out, into = weights_VV.sum(axis=1), weights_VV.sum(axis=0)
    total = out + into
    return float(np.max(np.abs(out - into)[total > 0] / total[total > 0], initial=0.0))


def certificate(weights_VV: np.ndarray) -> float:
    """An upper bound of beta: 1 for an Eulerian digraph, otherwise the largest ratio of opposite edges (infinite for a one-way edge)."""
    if imbalance(weights_VV) == 0.0:
        return 1.0
    forth, back = weights_VV, weights_VV.T
    used = forth > 0
    if (back[used] == 0).any():
        return float("inf")
    return float((forth[used] / back[used]).max(initial=1.0))


def routing(transitions_LEE: np.ndarray, closing_EE: np.ndarray) -> np.ndarray:
    """Adjacency [L E, L E] of (layer, expert): tokens handed on, the last layer linked back to the first."""
    layers, experts = len(transitions_LEE) + 1, closing_EE.shape[0]
    out = np.zeros((layers * experts, layers * experts))
    for index, counts in enumerate(transitions_LEE):
        start = index * experts
        out[start : start + experts, start + experts : start + 2 * experts] += counts
    out[-experts:, :experts] += closing_EE
    return out
