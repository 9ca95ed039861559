"""Family `granitemoeshared`: a shared expert of any width, added ungated.

With attention_multiplier = head_dim ** -0.5 and the other multipliers 1 it computes what a LLaMA block with a split FFN does.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.model.families.base import Family, Shape, common_config, head_dim


def config(dense: Any, shape: Shape) -> Any:
    """GraniteMoeSharedConfig of a dense parent."""
    from transformers import GraniteMoeSharedConfig

    return GraniteMoeSharedConfig(
        **common_config(dense),
        intermediate_size=shape.neurons,
        shared_intermediate_size=shape.shared,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.per_token,
        attention_multiplier=head_dim(dense) ** -0.5,
        embedding_multiplier=1.0,
        logits_scaling=1.0,
        residual_multiplier=1.0,
    )


def model() -> Any:
    """The transformers class."""
    from transformers import GraniteMoeSharedForCausalLM

    return GraniteMoeSharedForCausalLM


def block(layer: nn.Module) -> tuple[Any, Any, Any] | None:
    """Router, experts and shared expert of a decoder layer."""
    from transformers.models.granitemoeshared.modeling_granitemoeshared import GraniteMoeSharedDecoderLayer

    if not isinstance(layer, GraniteMoeSharedDecoderLayer):
        return None
    moe: Any = layer.block_sparse_moe
    return moe.router, moe.experts, layer.shared_mlp


@torch.no_grad()
def set_shared(module: Any, gate_SD: Tensor, up_SD: Tensor, down_DS: Tensor) -> None:
    """Gate and up are one stacked matrix here."""
    module.input_linear.weight.copy_(torch.cat([gate_SD, up_SD]))
    module.output_linear.weight.copy_(down_DS)


def get_shared(module: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What `set_shared` wrote."""
    gate, up = module.input_linear.weight.chunk(2)
    return gate, up, module.output_linear.weight


def refuse(shape: Shape, dense: Any) -> str | None:
    """Every MoE layer has one shared expert; a width of 0 means none at all."""
    if shape.dense_layers:
        return "it has no dense layers"
    return "its router has no bias" if shape.bias else None


def caution(dense: Any) -> str | None:
    """vLLM's and mlx-lm's classes know no head width of their own."""
    if head_dim(dense) * dense.num_attention_heads == dense.hidden_size:
        return None
    return "vLLM and mlx-lm take hidden size / heads for the head width, which the parent's is not"


def running(saved: Mapping[str, Any]) -> tuple[int, Collection[int]]:
    """Neurons that run in an MoE layer, and the dense layers, from config.json."""
    routed = saved["num_experts_per_tok"] * saved["intermediate_size"]
    return saved["shared_intermediate_size"] + routed, ()


FAMILY = Family(
    name="granitemoeshared",
    config=config,
    model=model,
    block=block,
    set_shared=set_shared,
    get_shared=get_shared,
    refuse=refuse,
    running=running,
    caution=caution,
    about="an ungated shared expert of any width; known to vLLM and llama.cpp",
)
