"""Split `coactivation-sampled`: as `coactivation`, on an unbiased sample of the graph that never forms the F x F matrix.

For FFNs too wide for the dense graph (above about 20,000 neurons). See graphs/sketch.py for the estimator; its measured cut error is in
the audit. Motivation: for-each cut sketches (Cheng et al., PODS 2024, arXiv 2406.13231), whose lower bounds say what any sketch must keep.
"""

from typing import Any

import torch

from moesaic.experts.assignment import Assignment, Sizes, from_labels
from moesaic.experts.features import Features, Ffn
from moesaic.experts.graphs import partition, sketch

NEEDS = frozenset({"rate", "active"})
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Share the most often active neurons, cut a sample of the graph of the rest."""
    assert features is not None
    assert features.active_TF is not None
    order = features.rate_F.argsort(descending=True, stable=True)
    shared, rest = order[: sizes.shared], order[sizes.shared :].sort().values
    chosen = options["coactivation"]
    active = features.active_TF.columns(rest.numpy())
    graph = sketch.sample(active, chosen["samples"], chosen["weights"] == "excess", seed * 1_000_003 + layer)
    labels = partition.balanced(graph, sizes.experts, seed + layer, chosen["seeds"])
    return from_labels(shared, rest, torch.from_numpy(labels).long(), sizes.experts, features.rate_F)
