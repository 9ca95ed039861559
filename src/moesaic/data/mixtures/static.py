"""Mixture `static`: weights that never change."""

from collections.abc import Mapping
from typing import Any

from moesaic.data.mixtures import prior
from moesaic.data.mixtures.base import Mixture


class Static(Mixture):
    """The weights of `prior`."""

    def __init__(self, settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]):
        super().__init__(prior.weights(settings["weights"], sizes, like))
