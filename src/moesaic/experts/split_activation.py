"""Split `activation`: the most often active neurons are shared, the rest fall into balanced clusters of activation patterns.

Shared neurons: highest activation rate (CMoE, arXiv 2502.04416, section 3.1; DeepSeekMoE's shared expert, arXiv 2401.06066).
Clusters: balanced k-means on each neuron's normalised contribution over the calibration tokens, so that neurons which work on the
same tokens share an expert; sizes are exactly equal (min-cost flow, package k-means-constrained, one initialisation).
"""

import torch

from moesaic.experts.assignment import Assignment, generator
from moesaic.experts.features import Activations

NEEDS_ACTIVATIONS = True
MAX_ITERATIONS = 20


def split(
    activations: Activations | None, width: int, shared: int, experts: int, seed: int, layer: int
) -> Assignment:
    """Assign the neurons of one layer; deterministic for a seed."""
    assert activations is not None
    rate_F = activations.rate()
    order = rate_F.argsort(descending=True, stable=True)
    shared_S, rest = order[:shared].sort().values, order[shared:].sort().values
    patterns = activations.patterns(generator(seed, layer, 1))[rest]
    labels = balanced_clusters(patterns, experts, seed + layer)
    routed = torch.stack([rest[labels == expert] for expert in range(experts)])
    return Assignment(shared_S, routed, rate_F)


def balanced_clusters(points_NP: torch.Tensor, clusters: int, seed: int) -> torch.Tensor:
    """Labels [N] of equal-size k-means clusters; N must divide by `clusters`."""
    from k_means_constrained import KMeansConstrained

    size = points_NP.shape[0] // clusters
    if clusters == 1:
        return torch.zeros(points_NP.shape[0], dtype=torch.long)
    if size == 1:
        return torch.arange(points_NP.shape[0])
    model = KMeansConstrained(
        clusters, size_min=size, size_max=size, n_init=1, max_iter=MAX_ITERATIONS, random_state=seed
    )
    return torch.from_numpy(model.fit_predict(points_NP.numpy())).long()
