"""Supervised tuning."""

from moesaic.schema.depth import Depth
from moesaic.schema.training import Mixture, Training


class Tune(Training):
    mixture: Mixture = Mixture(weights="size")
    depth: Depth | None = None
    """Dynamic layer operations: more layers, and layers that tokens skip. null: the model's depth stays as it is."""
