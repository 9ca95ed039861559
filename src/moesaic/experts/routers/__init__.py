"""The router initialisations by their names in the configuration; to add one, add its file and a line here."""

from typing import Any

from moesaic.experts.routers import centroids, least_squares, random, representative

METHODS: dict[str, Any] = {
    "random": random,
    "centroids": centroids,
    "representative": representative,
    "least-squares": least_squares,
}
"""Each has NEEDS_ACTIVATIONS and fit(ffn, batches, assignment, options, seed, layer) -> weights [E, D]."""
