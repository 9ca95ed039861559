"""Total and active parameters, and the floating-point operations of a token."""

from dataclasses import dataclass
from typing import Any

from moesaic.model import families


@dataclass(frozen=True)
class Size:
    """Parameter counts; tied embeddings count once."""

    total: int
    active: int
    """Parameters that a token passes through: everything but the routed experts that are not chosen."""
    embedding: int
    """Token embeddings (a look-up: no multiplication), 0 when tied to the output head, which multiplies."""

    def flops_per_token(self, training: bool) -> int:
        """2 per active weight in the forward pass, 6 with the backward pass; attention scores left out (short context)."""
        return (6 if training else 2) * (self.active - self.embedding)


def count(model: Any) -> Size:
    """Count a model's parameters by module type."""
    total = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    idle = 0
    for part in families.parts(model):
        routed = sum(parameter.numel() for parameter in part.experts.parameters())
        experts, chosen = part.router.weight.shape[0], part.router.top_k
        idle += routed * (experts - int(chosen)) // experts
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return Size(total, total - idle, 0 if inputs is outputs else inputs.numel())
