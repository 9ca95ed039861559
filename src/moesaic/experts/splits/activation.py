"""Split `activation`: the neurons that matter most are shared, the rest fall into balanced clusters of activation patterns.

Shared neurons (DeepSeekMoE's shared expert, arXiv 2401.06066), by `activation.shared_by`: `sensitivity`, the mean of (h dL/dh)^2, which is the diagonal
of the Fisher information of a switch on the neuron (after Optimal Brain Damage, LeCun et al., 1990; Molchanov et al., arXiv 1906.10771,
eq. 8, here per token); or `rate`, the highest activation rate (CMoE, arXiv 2502.04416, section 3.1), which needs no gradients.
Clusters: balanced k-means on each neuron's normalised contribution over the calibration tokens, so that neurons which work on the
same tokens share an expert; sizes are exactly equal.
"""

from typing import Any

from moesaic.experts.assignment import Assignment, Sizes, from_labels
from moesaic.experts.features import Features, Ffn
from moesaic.experts.splits import balanced


def needs(options: dict[str, Any]) -> frozenset[str]:
    """Gradients, when shared neurons are chosen by them."""
    by_loss = options["activation"]["shared_by"] == "sensitivity"
    return frozenset({"patterns", "sensitivity" if by_loss else "rate"})


OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Assign the neurons of one layer; deterministic for a seed."""
    assert features is not None
    by_loss = options["activation"]["shared_by"] == "sensitivity"
    score_F = features.sensitivity_F if by_loss else features.rate_F
    assert score_F is not None
    order = score_F.argsort(descending=True, stable=True)
    shared, rest = order[: sizes.shared], order[sizes.shared :].sort().values
    labels = balanced.clusters(features.patterns_FP[rest].contiguous(), sizes.experts, (seed + layer) % 2**32)
    return from_labels(shared, rest, labels, sizes.experts, score_F)
