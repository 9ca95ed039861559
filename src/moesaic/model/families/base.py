"""What the MoE families have in common: their shape, their parts, the configuration keys that all of them share.

Shapes: D model width, F dense FFN width, E routed experts, K experts per token, M neurons per expert, S shared neurons.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The widths of an MoE, the same in every MoE layer (no stock class varies them)."""

    experts: int
    """E, routed experts."""
    per_token: int
    """K, routed experts that run for a token."""
    neurons: int
    """M, width of a routed expert."""
    shared: int = 0
    """S, width of the shared expert; 0 for none."""
    dense_layers: tuple[int, ...] = ()
    """Decoder layers that keep the parent's FFN."""
    bias: bool = False
    """The router has a bias per expert that only takes part in the choice."""


@dataclass(frozen=True)
class Parts:
    """The pieces of one MoE decoder layer."""

    layer: int
    """Index of the decoder layer."""
    router: Any
    """Has weight [E, D] and returns (logits [T, E], weights [T, K], indices [T, K])."""
    experts: Any
    """Has gate_up_proj [E, 2M, D] and down_proj [E, D, M]."""
    shared: Any
    """The shared expert's module; None without one."""
    family: "Family"


@dataclass(frozen=True)
class Family:
    """A stock transformers architecture and what it can express."""

    name: str
    """Its model_type in transformers."""
    config: Callable[[Any, Shape], Any]
    """Configuration for a dense parent's configuration and a shape."""
    model: Callable[[], Any]
    """The causal-LM class (imported when asked for)."""
    block: Callable[[nn.Module], tuple[Any, Any, Any] | None]
    """(router, experts, shared) of a decoder layer, None for a layer without experts."""
    set_shared: Callable[[Any, Tensor, Tensor, Tensor], None] | None
    """Copy gate [S, D], up [S, D] and down [D, S] into the shared expert's module; None: it cannot have one."""
    get_shared: Callable[[Any], tuple[Tensor, Tensor, Tensor]] | None
    """What `set_shared` wrote."""
    refuse: Callable[[Shape, Any], str | None]
    """Why a shape (and dense configuration) cannot be expressed; None when it can."""
    running: Callable[[Mapping[str, Any]], tuple[int, Collection[int]]]
    """Of a saved config.json: the FFN neurons that run for a token in an MoE layer, and the layers that are dense."""
    about: str
    """What it is good for, in one line."""
    caution: Callable[[Any], str | None] = lambda _dense: None
    """Of a dense configuration: why other engines than transformers read such a model wrongly; another family is taken first."""
    scores: str = "softmax"
    """How logits become weights: softmax over the chosen ones, or sigmoid divided by the chosen ones' sum."""
    scale_field: bool = False
    """True: the configuration has a factor on the routed output; False: it is folded into the down projections."""
    bias: bool = False
    """True: the router has a bias per expert that only takes part in the choice."""


def chosen_weights(logits_TK: Tensor, scores: str) -> Tensor:
    """What the stock routers make of the logits of a token's chosen experts [T, K], before their factor. Args: scores: Family.scores."""
    if scores == "sigmoid":
        score_TK = logits_TK.sigmoid()
        return score_TK / (score_TK.sum(dim=1, keepdim=True) + 1e-20)
    return logits_TK.softmax(dim=1)


def common_config(dense: Any) -> dict[str, Any]:
    """The keys that every family takes over from the dense configuration as they are."""
    return {
        "vocab_size": dense.vocab_size,
        "hidden_size": dense.hidden_size,
        "num_hidden_layers": dense.num_hidden_layers,
        "num_attention_heads": dense.num_attention_heads,
        "num_key_value_heads": dense.num_key_value_heads,
        "head_dim": head_dim(dense),
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
        "dtype": dense.dtype,
    }


def head_dim(dense: Any) -> int:
    """Width of an attention head."""
    return int(getattr(dense, "head_dim", None) or dense.hidden_size // dense.num_attention_heads)


@torch.no_grad()
def set_mlp(module: Any, gate_SD: Tensor, up_SD: Tensor, down_DS: Tensor) -> None:
    """Fill an ordinary SwiGLU module."""
    module.gate_proj.weight.copy_(gate_SD)
    module.up_proj.weight.copy_(up_SD)
    module.down_proj.weight.copy_(down_DS)


def get_mlp(module: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The three matrices of an ordinary SwiGLU module."""
    return module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight
