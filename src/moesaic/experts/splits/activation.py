"""Split `activation`: the most often active neurons are shared, the rest fall into balanced clusters of activation patterns.

Shared neurons: highest activation rate (CMoE, arXiv 2502.04416, section 3.1; DeepSeekMoE's shared expert, arXiv 2401.06066).
Clusters: balanced k-means on each neuron's normalised contribution over the calibration tokens, so that neurons which work on the
same tokens share an expert; sizes are exactly equal.
"""

from typing import Any

from moesaic.experts.assignment import Assignment, Sizes, from_labels
from moesaic.experts.features import Features, Ffn
from moesaic.experts.splits import balanced

NEEDS = frozenset({"rate", "patterns"})
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Assign the neurons of one layer; deterministic for a seed."""
    assert features is not None
    order = features.rate_F.argsort(descending=True, stable=True)
    shared, rest = order[: sizes.shared], order[sizes.shared :].sort().values
    labels = balanced.clusters(features.patterns_FP[rest].contiguous(), sizes.experts, seed + layer)
    return from_labels(shared, rest, labels, sizes.experts, features.rate_F)
