"""Which standard transformers architecture an MoE is written as, and how to find its parts by type.

Shapes: D model width, E routed experts, K experts per token, M neurons per expert, S shared neurons.

GraniteMoeShared carries an ungated shared expert and Mixtral none; with attention_multiplier = head_dim ** -0.5 and the other
multipliers 1 both compute exactly what a LLaMA block with a split FFN does (tests/model/test_families.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from moesaic.errors import InputError

PARENTS = ("llama", "mistral")
"""model_type of the dense parents that the MoE families below represent exactly."""


@dataclass(frozen=True)
class Parts:
    """The pieces of one MoE decoder layer."""

    layer: int
    router: Any
    """Has weight [E, D] and returns (logits [T, E], weights [T, K], indices [T, K])."""
    experts: Any
    """Has gate_up_proj [E, 2M, D] and down_proj [E, D, M]."""
    shared: Any
    """Has input_linear.weight [2S, D] and output_linear.weight [D, S]; None without shared neurons."""


def check_parent(config: Any) -> None:
    """Refuse a dense parent that no MoE family can represent. Raises InputError naming what is in the way."""
    if config.model_type not in PARENTS:
        raise InputError(
            f"model.at: architecture {config.model_type} is not supported; supported: {', '.join(PARENTS)}"
        )
    if getattr(config, "sliding_window", None):
        raise InputError(
            "model.at: sliding-window attention (config.json: sliding_window) has no counterpart in the MoE families; use a checkpoint without it"
        )
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            raise InputError(
                f"model.at: biases in the blocks (config.json: {key}) have no counterpart in the MoE families"
            )


def moe_config(dense: Any, experts: int, per_token: int, neurons: int, shared: int) -> Any:
    """Configuration of the MoE that a dense configuration becomes.

    Args:
        experts: routed experts E. per_token: K. neurons: width M of a routed expert. shared: width S of the shared expert.
    """
    from transformers import GraniteMoeSharedConfig, MixtralConfig

    common: dict[str, Any] = {
        "vocab_size": dense.vocab_size,
        "hidden_size": dense.hidden_size,
        "intermediate_size": neurons,
        "num_hidden_layers": dense.num_hidden_layers,
        "num_attention_heads": dense.num_attention_heads,
        "num_key_value_heads": dense.num_key_value_heads,
        "head_dim": dense.head_dim or dense.hidden_size // dense.num_attention_heads,
        "hidden_act": dense.hidden_act,
        "max_position_embeddings": dense.max_position_embeddings,
        "initializer_range": dense.initializer_range,
        "rms_norm_eps": dense.rms_norm_eps,
        "rope_parameters": dict(dense.rope_parameters),
        "tie_word_embeddings": dense.tie_word_embeddings,
        "attention_dropout": dense.attention_dropout,
        "bos_token_id": dense.bos_token_id,
        "eos_token_id": dense.eos_token_id,
        "pad_token_id": dense.pad_token_id,
        "num_local_experts": experts,
        "num_experts_per_tok": per_token,
        "dtype": dense.dtype,
    }
    if shared == 0:
        return MixtralConfig(**common, sliding_window=None, router_jitter_noise=0.0)
    return GraniteMoeSharedConfig(
        **common,
        shared_intermediate_size=shared,
        attention_multiplier=common["head_dim"] ** -0.5,
        embedding_multiplier=1.0,
        logits_scaling=1.0,
        residual_multiplier=1.0,
    )


def build(config: Any) -> Any:
    """An MoE model of a configuration, with weights that the caller fills."""
    from transformers import GraniteMoeSharedForCausalLM, MixtralForCausalLM

    classes = {"mixtral": MixtralForCausalLM, "granitemoeshared": GraniteMoeSharedForCausalLM}
    return classes[config.model_type](config)


def is_moe(model: Any) -> bool:
    """True for a model of one of the MoE families."""
    return model.config.model_type in ("mixtral", "granitemoeshared")


def parts(model: nn.Module) -> Iterator[Parts]:
    """The MoE layers of a model, found by module type, in order of depth; nothing for a dense model."""
    from transformers.models.granitemoeshared.modeling_granitemoeshared import GraniteMoeSharedDecoderLayer
    from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

    index = 0
    for module in model.modules():
        if isinstance(module, GraniteMoeSharedDecoderLayer):
            block: Any = module.block_sparse_moe
            yield Parts(index, block.router, block.experts, module.shared_mlp)
            index += 1
        elif isinstance(module, MixtralDecoderLayer):
            block = module.mlp
            yield Parts(index, block.gate, block.experts, None)
            index += 1


def set_per_token(model: Any, per_token: int) -> None:
    """Run another number of routed experts per token from now on."""
    if not 1 <= per_token <= model.config.num_local_experts:
        raise InputError(
            f"per_token: {per_token} is not between 1 and the model's {model.config.num_local_experts} experts"
        )
    model.config.num_experts_per_tok = per_token
    for part in parts(model):
        part.router.top_k = per_token


class Routing:
    """Context manager that records what the routers decide.

    `logits[layer]` is [T, E], `indices[layer]` and `weights[layer]` are [T, K]; each forward pass replaces the last one's.
    """

    def __init__(self, model: nn.Module):
        self.layers = list(parts(model))
        self.logits: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}
        self.indices: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Routing":
        for part in self.layers:
            self._handles.append(part.router.register_forward_hook(self._hook(part.layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, layer: int) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            self.logits[layer], self.weights[layer], self.indices[layer] = output

        return record
