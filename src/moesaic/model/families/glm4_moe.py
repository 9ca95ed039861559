"""Family `glm4_moe`: sigmoid scores, a bias per expert for the choice only, a factor on the routed output, first layers dense."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from moesaic.model.families.base import Family, Shape, common_config, get_mlp, set_mlp


def config(dense: Any, shape: Shape) -> Any:
    """Glm4MoeConfig of a dense parent."""
    from transformers import Glm4MoeConfig

    keys = common_config(dense)
    keys["rope_parameters"] = keys["rope_parameters"] | {"partial_rotary_factor": 1.0}
    return Glm4MoeConfig(
        **keys,
        intermediate_size=dense.intermediate_size,
        moe_intermediate_size=shape.neurons,
        n_shared_experts=shape.shared // shape.neurons,
        n_routed_experts=shape.experts,
        num_experts_per_tok=shape.per_token,
        first_k_dense_replace=len(shape.dense_layers),
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        n_group=1,
        topk_group=1,
        use_qk_norm=False,
        attention_bias=False,
        num_mtp_layers=0,
    )


def model() -> Any:
    """The transformers class."""
    from transformers import Glm4MoeForCausalLM

    return Glm4MoeForCausalLM


def block(layer: nn.Module) -> tuple[Any, Any, Any] | None:
    """Router, experts and shared expert of a decoder layer."""
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeDecoderLayer, Glm4MoeMoE

    if not isinstance(layer, Glm4MoeDecoderLayer) or not isinstance(layer.mlp, Glm4MoeMoE):
        return None
    return layer.mlp.gate, layer.mlp.experts, layer.mlp.shared_experts


def refuse(shape: Shape, dense: Any) -> str | None:
    """Shared width in whole experts; dense layers at the beginning."""
    if shape.shared == 0 or shape.shared % shape.neurons:
        return f"its shared expert is a multiple of a routed one's {shape.neurons} neurons, at least one"
    if shape.dense_layers != tuple(range(len(shape.dense_layers))):
        return "only its first layers can be dense"
    if shape.experts < 2:
        return "it needs at least two experts"
    return None


def running(saved: Mapping[str, Any]) -> tuple[int, Collection[int]]:
    """Neurons that run in an MoE layer, and the dense layers, from config.json."""
    experts = saved["n_shared_experts"] + saved["num_experts_per_tok"]
    return experts * saved["moe_intermediate_size"], range(saved["first_k_dense_replace"])


FAMILY = Family(
    name="glm4_moe",
    config=config,
    model=model,
    block=block,
    set_shared=set_mlp,
    get_shared=get_mlp,
    refuse=refuse,
    running=running,
    about="sigmoid scores with a balancing bias, for auxiliary-loss-free training, and first layers left dense; known to vLLM and llama.cpp",
    scores="sigmoid",
    scale_field=True,
    bias=True,
)
