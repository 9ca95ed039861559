"""How often each domain is drawn. A mixture is a pure function of its state and of what it observes; its state is checkpointed."""

from collections.abc import Callable, Mapping
from typing import Any

from moesaic.data.mixtures.base import Mixture, Observation, Probe
from moesaic.data.mixtures.dynamic import Dynamic, DynamicPaper
from moesaic.data.mixtures.gate_load import GateLoad
from moesaic.data.mixtures.gate_load_robust import GateLoadRobust
from moesaic.data.mixtures.ref_loss import RefLoss
from moesaic.data.mixtures.sentence_embedding import SentenceEmbedding
from moesaic.data.mixtures.static import Static
from moesaic.data.mixtures.temperature import Temperature

__all__ = ["METHODS", "Mixture", "Observation", "Probe", "build"]

METHODS: dict[str, Callable[..., Mixture]] = {
    "static": Static,
    "temperature": Temperature,
    "dynamic": Dynamic,
    "dynamic-paper": DynamicPaper,
    "ref-loss": RefLoss,
    "sentence-embedding": SentenceEmbedding,
    "gate-load": GateLoad,
    "gate-load-robust": GateLoadRobust,
}


def build(settings: Mapping[str, Any], sizes: Mapping[str, int], like: Mapping[str, str | None]) -> Mixture:
    """The configured mixture.

    Args:
        settings: schema.Mixture as a dict. sizes: tokens or items per domain. like: SlimPajama domain of each domain.
    """
    return METHODS[settings["method"]](settings, sizes, like)
