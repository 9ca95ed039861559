"""Family `mixtral`: routed experts only; the architecture that most engines know."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from moesaic.model.families.base import Family, Shape, common_config


def config(dense: Any, shape: Shape) -> Any:
    """MixtralConfig of a dense parent."""
    from transformers import MixtralConfig

    return MixtralConfig(
        **common_config(dense),
        intermediate_size=shape.neurons,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.per_token,
        sliding_window=None,
        router_jitter_noise=0.0,
    )


def model() -> Any:
    """The transformers class."""
    from transformers import MixtralForCausalLM

    return MixtralForCausalLM


def block(layer: nn.Module) -> tuple[Any, Any, Any] | None:
    """Router, experts and no shared expert of a decoder layer."""
    from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

    if not isinstance(layer, MixtralDecoderLayer):
        return None
    return layer.mlp.gate, layer.mlp.experts, None


def refuse(shape: Shape, dense: Any) -> str | None:
    """Mixtral has routed experts in every layer and nothing else."""
    if shape.shared:
        return "it has no shared expert"
    if shape.dense_layers:
        return "it has no dense layers"
    return "its router has no bias" if shape.bias else None


def running(saved: Mapping[str, Any]) -> tuple[int, Collection[int]]:
    """Neurons that run in an MoE layer, and the dense layers, from config.json."""
    return saved["num_experts_per_tok"] * saved["intermediate_size"], ()


FAMILY = Family(
    name="mixtral",
    config=config,
    model=model,
    block=block,
    set_shared=None,
    get_shared=None,
    refuse=refuse,
    running=running,
    about="routed experts only; known to every engine and to llama.cpp",
)
