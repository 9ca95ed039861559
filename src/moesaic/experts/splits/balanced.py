"""Clusters of exactly equal size: min-cost flow in every k-means step (package k-means-constrained), one initialisation.

One initialisation is enough: ten, the library's default and LLaMA-MoE's setting, cost ten times as much for the same inertia.
"""

import torch
from torch import Tensor

MAX_ITERATIONS = 20
SCALE = 100.0
"""Length of the longest point: distances differ by far less than a thousandth of it where rows are wide."""


def clusters(
    points_NP: Tensor, count: int, seed: int, initialisations: int = 1, iterations: int = MAX_ITERATIONS
) -> Tensor:
    """Labels [N] of `count` clusters of equal size; N must divide by `count`."""
    from k_means_constrained import KMeansConstrained

    size = points_NP.shape[0] // count
    assert size * count == points_NP.shape[0], (
        f"{points_NP.shape[0]} points do not divide into {count} clusters"
    )
    if count == 1:
        return torch.zeros(points_NP.shape[0], dtype=torch.long)
    if size == 1:
        return torch.arange(points_NP.shape[0])
    model = KMeansConstrained(
        count, size_min=size, size_max=size, n_init=initialisations, max_iter=iterations, random_state=seed
    )
    # the solver takes whole numbers, a thousandth of a unit of distance each; labels do not depend on the scale
    largest = float(points_NP.norm(dim=1).max())
    scaled_NP = points_NP * (SCALE / largest) if largest > 0 else points_NP
    return torch.from_numpy(model.fit_predict(scaled_NP.numpy())).long()
