"""How often each domain is drawn. A mixture is a pure function of its state and of what it observes; its state is checkpointed."""

from collections.abc import Mapping
from typing import Any

from moesaic.data.mixtures.static import Static

METHODS: dict[str, Any] = {"static": Static}


def build(settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]) -> Static:
    """The configured mixture.

    Args:
        settings: schema.Mixture as a dict. sizes: tokens or items per domain. like: SlimPajama domain of each domain.
    """
    return METHODS[settings["method"]](settings["weights"], sizes, like)
