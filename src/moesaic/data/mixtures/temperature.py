"""Mixture `temperature`: weights to the power 1/T. T = 1 keeps them, larger T comes closer to uniform.

With `weights: size` this is the sampling of multilingual and multi-task training (mT5, arXiv 2010.11934, section 3.2, alpha = 1/T).
"""

from collections.abc import Mapping
from typing import Any

from moesaic.data.mixtures import prior
from moesaic.data.mixtures.base import Mixture


class Temperature(Mixture):
    """Weights that never change."""

    def __init__(self, settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]):
        start = prior.weights(settings["weights"], sizes, like)
        raw = {
            name: value ** (1 / settings["temperature"]) if value > 0 else 0.0
            for name, value in start.items()
        }
        total = sum(raw.values())
        super().__init__({name: value / total for name, value in raw.items()})
