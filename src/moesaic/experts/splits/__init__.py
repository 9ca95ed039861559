"""The split methods by their names in the configuration; to add one, add its file and a line here."""

from typing import Any

from moesaic.experts.splits import (
    activation,
    clustering,
    coactivation,
    coactivation_sampled,
    copy,
    drop,
    gradient,
    importance,
    random,
    sequential,
    sharing_inner,
    sharing_inter,
)

METHODS: dict[str, Any] = {
    "random": random,
    "sequential": sequential,
    "clustering": clustering,
    "coactivation": coactivation,
    "coactivation-sampled": coactivation_sampled,
    "gradient": gradient,
    "importance": importance,
    "sharing-inner": sharing_inner,
    "sharing-inter": sharing_inter,
    "activation": activation,
    "copy": copy,
    "drop": drop,
}
"""Each has NEEDS (which features) or needs(options), OVERLAP (may a neuron be in several experts) and split(ffn, features, sizes, options, seed, layer)."""


def needs(options: dict[str, Any]) -> frozenset[str]:
    """Which features the split that `options` name wants."""
    method = METHODS[options["split"]]
    found: frozenset[str] = method.needs(options) if hasattr(method, "needs") else method.NEEDS
    return found
