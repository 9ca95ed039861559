"""How often each domain is drawn. A mixture is a pure function of its state and of what it observes; its state is checkpointed."""

from collections.abc import Callable, Mapping
from typing import Any

from moesaic.data.mixtures.base import Mixture, Observation
from moesaic.data.mixtures.dynamic import Dynamic, DynamicPaper
from moesaic.data.mixtures.static import Static
from moesaic.data.mixtures.temperature import Temperature

__all__ = ["METHODS", "Mixture", "Observation", "build"]

METHODS: dict[str, Callable[..., Mixture]] = {
    "static": Static,
    "temperature": Temperature,
    "dynamic": Dynamic,
    "dynamic-paper": DynamicPaper,
}


def build(settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]) -> Mixture:
    """The configured mixture.

    Args:
        settings: schema.Mixture as a dict. sizes: tokens or items per domain. like: SlimPajama domain of each domain.
    """
    return METHODS[settings["method"]](settings, sizes, like)
