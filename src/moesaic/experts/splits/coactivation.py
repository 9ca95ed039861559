"""Split `coactivation`: cut the graph of neurons that fire together into experts of equal size, with as little weight cut as possible.

Source: MoEfication (arXiv 2110.01786, section 3.1), whose edge weights are raw counts of common activations; those follow how often each
neuron fires. Default here: excess over independence, max(0, C_ij - f_i f_j / T). METIS (package pymetis), best of several seeds.
"""

from typing import Any

import numpy as np
import torch
from scipy import sparse

from moesaic.experts.assignment import Assignment, Sizes, from_labels
from moesaic.experts.features import Features, Ffn
from moesaic.experts.graphs import partition, weights

NEEDS = frozenset({"rate", "coactivation"})
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Share the most often active neurons, cut the graph of the rest."""
    assert features is not None
    assert features.coactivation_FF is not None
    order = features.rate_F.argsort(descending=True, stable=True)
    shared, rest = order[: sizes.shared], order[sizes.shared :].sort().values
    counts = features.coactivation_FF[rest][:, rest]
    chosen = options["coactivation"]
    weights_RR = (
        weights.excess(counts, features.tokens) if chosen["weights"] == "excess" else weights.raw(counts)
    )
    graph = sparse.csr_matrix(weights_RR.numpy().astype(np.float64))
    labels = partition.balanced(graph, sizes.experts, seed + layer, chosen["seeds"])
    return from_labels(shared, rest, torch.from_numpy(labels).long(), sizes.experts, features.rate_F)
