"""Disk that a conversion takes while it lasts.

Shapes: L layers, T calibration tokens, D model width; hidden states are float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.experts import split_layers, walk


@dataclass(frozen=True)
class Room:
    """Bytes of the work folder, at most."""

    trace: int
    """The dense parent's hidden states before every layer and after the last, 4 (L + 1) T D; 0 when neither a split nor a fit asks for them."""
    stream: int
    """The hidden states that go from layer to layer, in two turns: 8 T D."""
    model: int
    """The converted layers and the finished model made of them: twice the model."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.trace + self.stream + self.model


def needed(model: Any, by_layer: Sequence[dict[str, Any]], tokens: int, width: int) -> Room:
    """Room for a conversion.

    Args:
        model: the MoE, weights on the meta device are enough. by_layer: schema.Experts of each layer, as dicts. tokens: calibration tokens. width: D.
    """
    states = 4 * tokens * width
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return Room(states * (len(by_layer) + 1) if traced(by_layer) else 0, 2 * states, 2 * weights)


def traced(by_layer: Sequence[dict[str, Any]]) -> bool:
    """True when a split or a fit asks for what the dense parent does on the calibration text."""
    return any(split_layers.traced(layer) or walk.compensates(layer) for layer in by_layer)
