"""Family `qwen2_moe`: any layers may stay dense; the shared expert passes a sigmoid gate.

A zero gate gives the factor 1/2 for every token, so the shared down projection is written twice as large.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.model.families.base import Family, Shape, common_config, get_mlp, head_dim, set_mlp


def config(dense: Any, shape: Shape) -> Any:
    """Qwen2MoeConfig of a dense parent."""
    from transformers import Qwen2MoeConfig

    keys = common_config(dense)
    del keys["head_dim"]  # the class derives it from the hidden size
    return Qwen2MoeConfig(
        **keys,
        intermediate_size=dense.intermediate_size,
        moe_intermediate_size=shape.neurons,
        shared_expert_intermediate_size=shape.shared,
        num_experts=shape.experts,
        num_experts_per_tok=shape.per_token,
        norm_topk_prob=True,
        qkv_bias=False,
        use_sliding_window=False,
        mlp_only_layers=list(shape.dense_layers),
    )


def model() -> Any:
    """The transformers class."""
    from transformers import Qwen2MoeForCausalLM

    return Qwen2MoeForCausalLM


def block(layer: nn.Module) -> tuple[Any, Any, Any] | None:
    """Router, experts and shared expert of a decoder layer."""
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeDecoderLayer, Qwen2MoeSparseMoeBlock

    if not isinstance(layer, Qwen2MoeDecoderLayer) or not isinstance(layer.mlp, Qwen2MoeSparseMoeBlock):
        return None
    return layer.mlp.gate, layer.mlp.experts, layer.mlp


@torch.no_grad()
def set_shared(module: Any, gate_SD: Tensor, up_SD: Tensor, down_DS: Tensor) -> None:
    """Fill the shared expert and close its gate half, for every token."""
    set_mlp(module.shared_expert, gate_SD, up_SD, 2.0 * down_DS)
    module.shared_expert_gate.weight.zero_()


def get_shared(module: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What `set_shared` wrote (exact while the gate is untrained)."""
    gate, up, down = get_mlp(module.shared_expert)
    return gate, up, down / 2.0


def refuse(shape: Shape, dense: Any) -> str | None:
    """A shared expert is part of the class; the head width follows from the hidden size."""
    if shape.shared == 0:
        return "it always has a shared expert"
    if head_dim(dense) * dense.num_attention_heads != dense.hidden_size:
        return "its attention heads divide the hidden size, the parent's do not"
    return "its router has no bias" if shape.bias else None


def running(saved: Mapping[str, Any]) -> tuple[int, Collection[int]]:
    """Neurons that run in an MoE layer, and the dense layers, from config.json."""
    routed = saved["num_experts_per_tok"] * saved["moe_intermediate_size"]
    return saved["shared_expert_intermediate_size"] + routed, saved["mlp_only_layers"]


FAMILY = Family(
    name="qwen2_moe",
    config=config,
    model=model,
    block=block,
    set_shared=set_shared,
    get_shared=get_shared,
    refuse=refuse,
    running=running,
    about="a gated shared expert, and any layers left dense; known to vLLM",
)
