"""Split `clustering`: balanced k-means on the neurons' own weights.

Source: LLaMA-MoE (arXiv 2406.16554), "Independent (Clustering)": rows of up_proj, scaled to unit length, L2 distance. On unit rows L2
and cosine distance order points alike, so `metric: cosine` means unit rows and `metric: l2` the rows as they are.
Shared neurons, when asked for: the largest |down column| x |row|, since weights alone know nothing else.
"""

from typing import Any

from torch.nn import functional

from moesaic.experts.assignment import Assignment, Sizes, from_labels
from moesaic.experts.features import Features, Ffn
from moesaic.experts.splits import balanced

NEEDS = frozenset({"weights"})
OVERLAP = False


def split(
    ffn: Ffn | None, features: Features | None, sizes: Sizes, options: dict[str, Any], seed: int, layer: int
) -> Assignment:
    """Cluster the rows of the chosen matrix."""
    assert ffn is not None
    chosen = options["clustering"]
    rows_FD = {"up": ffn.up_FD, "gate": ffn.gate_FD, "down": ffn.down_DF.T}[chosen["matrix"]]
    score_F = rows_FD.norm(dim=1) * ffn.down_DF.norm(dim=0)
    order = score_F.argsort(descending=True, stable=True)
    shared, rest = order[: sizes.shared], order[sizes.shared :].sort().values
    points = functional.normalize(rows_FD, dim=1) if chosen["metric"] == "cosine" else rows_FD
    labels = balanced.clusters(
        points[rest].contiguous(),
        sizes.experts,
        (seed + layer) % 2**32,
        chosen["initialisations"],
        chosen["iterations"],
    )
    return from_labels(shared, rest, labels, sizes.experts, score_F)
