"""Total and active parameters, and the floating-point operations of a token."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moesaic.model import families
from moesaic.model.depth import skip


@dataclass(frozen=True)
class Size:
    """Parameter counts; tied embeddings count once."""

    total: int
    active: int
    """Parameters that a token passes through: everything but the routed experts that are not chosen."""
    embedding: int
    """Token embeddings (a look-up: no multiplication), 0 when tied to the output head, which multiplies."""
    skippable: Mapping[int, int] = field(default_factory=dict)
    """Active parameters of the FFN of each layer that tokens may skip."""

    def flops_per_token(self, training: bool) -> int:
        """2 per active weight in the forward pass, 6 with the backward pass; attention scores left out (short context)."""
        return (6 if training else 2) * (self.active - self.embedding)

    def running(self, shares: Mapping[int, float]) -> int:
        """Active parameters of a mean token, when a layer's FFN runs for a share of the tokens; unknown layers run for all."""
        idle = sum((1.0 - shares.get(layer, 1.0)) * count for layer, count in self.skippable.items())
        return self.active - round(idle)


def count(model: Any) -> Size:
    """Count a model's parameters by module type."""
    total = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    idle: dict[int, int] = {}
    for part in families.parts(model):
        routed = sum(parameter.numel() for parameter in part.experts.parameters())
        experts, chosen = part.router.weight.shape[0], part.router.top_k
        idle[part.layer] = routed * (experts - int(chosen)) // experts
    skippable = {
        layer: sum(
            p.numel() for module in skip.ffn_modules(model.model.layers[layer]) for p in module.parameters()
        )
        - idle.get(layer, 0)
        for layer in skip.layers(model)
    }
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return Size(total, total - sum(idle.values()), 0 if inputs is outputs else inputs.numel(), skippable)
