"""Walk through the dense model layer by layer on calibration text; split, route and refit each layer on the way.

The hidden states that enter a layer come from the layers already converted, so each fit sees what it will see in use.
Memory: the hidden states of all calibration tokens plus one layer's activations, (2 D + 2 F) * T floats.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.experts import methods, reconstruct
from moesaic.experts.assignment import Assignment
from moesaic.experts.features import Activations, Ffn
from moesaic.flow.progress import Progress

UNIT_TEMPERATURE = 2.0**-12
"""Top-k choice does not change with the router's length, softmax does: a short router gives all chosen experts the same weight."""


@dataclass(frozen=True)
class Layer:
    """Everything that one MoE layer is made of."""

    assignment: Assignment
    router_ED: Tensor
    down_DF: Tensor
    """The down projection, refitted when asked for; the expert scale is not in it."""
    audit: dict[str, Any]
    """Expected load and reconstruction errors; empty when no calibration was needed."""


def ffns(dense: Any) -> list[Ffn]:
    """The FFN weights of a LLaMA-shaped model, float32."""
    found = []
    for block in dense.model.layers:
        mlp = block.mlp
        found.append(Ffn(*(p.weight.detach().float() for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))))
    return found


@torch.no_grad()
def construct_layers(
    dense: Any,
    batches: Callable[[], Iterator[Tensor]],
    count: int,
    settings: dict[str, Any],
    scale: float,
    seed: int,
) -> list[Layer]:
    """Split every layer.

    Args:
        batches: gives calibration batches of token ids [B, T]; not called when no method needs activations.
        count: number of batches. settings: schema.Experts as a dict. scale: factor on the softmax weights of chosen experts.
    """
    split, router = methods.SPLITS[settings["split"]], methods.ROUTERS[settings["router"]]
    refit = settings["reconstruct"] == "least-squares"
    calibrated = split.NEEDS_ACTIVATIONS or router.NEEDS_ACTIVATIONS or refit
    weights = ffns(dense)
    progress = Progress("split layers", len(weights), "layers")
    stream = _Stream(dense, list(batches())) if calibrated else None
    layers: list[Layer] = []
    for index, ffn in enumerate(weights):
        activations = stream.enter(index, ffn) if stream else None
        sizes = (ffn.width, settings["shared"], settings["experts"])
        assignment: Assignment = split.split(activations, *sizes, seed, index)
        assignment.check(ffn.width)
        router_ED: Tensor = router.fit(
            activations, assignment, ffn.down_DF.shape[0], settings["ridge"], seed, index
        )
        if settings["scale"] == "unit":
            router_ED = router_ED * UNIT_TEMPERATURE
        down_DF, audit = ffn.down_DF, dict[str, Any]()
        if activations is not None and stream is not None:
            down_DF, audit, output_TD = _fit(activations, assignment, router_ED, settings, scale)
            stream.leave(output_TD)
        layers.append(Layer(assignment, router_ED, down_DF, audit))
        progress.update(detail=f"relative error {audit['error']:.3f}" if audit else "")
    return layers


def _fit(
    activations: Activations,
    assignment: Assignment,
    router_ED: Tensor,
    settings: dict[str, Any],
    scale: float,
) -> tuple[Tensor, dict[str, Any], Tensor]:
    ffn = activations.ffn
    routed = reconstruct.route(activations.x_TD, router_ED, settings["per_token"], scale)
    a_TF = reconstruct.masked(activations, assignment, routed)
    target_TD = activations.h_TF @ ffn.down_DF.T
    before = reconstruct.relative_error(a_TF @ ffn.down_DF.T, target_TD)
    down_DF = ffn.down_DF
    if settings["reconstruct"] == "least-squares":
        down_DF = reconstruct.refit(a_TF, target_TD, ffn.down_DF, settings["ridge"])
    output_TD = a_TF @ down_DF.T
    audit = {
        "load": [round(float(value), 6) for value in routed.load_E],
        "error_before_refit": round(before, 6),
        "error": round(reconstruct.relative_error(output_TD, target_TD), 6),
    }
    return down_DF, audit, output_TD


class _Stream:
    """The residual stream of all calibration batches, between two layers."""

    def __init__(self, dense: Any, batches: list[Tensor]):
        assert dense.config._attn_implementation == "sdpa", "calibration relies on sdpa's causal default"
        self.model = dense.model
        self.hidden = [self.model.embed_tokens(ids).float() for ids in batches]
        position = torch.arange(batches[0].shape[1])[None]
        self.rotary = self.model.rotary_emb(self.hidden[0], position_ids=position)

    def enter(self, index: int, ffn: Ffn) -> Activations:
        """Run the attention of a layer; give the FFN's inputs and activations, tokens of all batches joined."""
        block = self.model.layers[index]
        inputs = []
        for i, hidden in enumerate(self.hidden):
            dtype = block.self_attn.q_proj.weight.dtype
            attended, _ = block.self_attn(
                hidden_states=block.input_layernorm(hidden.to(dtype)),
                position_embeddings=self.rotary,
                attention_mask=None,
            )
            self.hidden[i] = hidden + attended.float()
            inputs.append(block.post_attention_layernorm(self.hidden[i].to(dtype)).float().flatten(0, 1))
        x_TD = torch.cat(inputs)
        return Activations(ffn, x_TD, ffn.hidden(x_TD))

    def leave(self, output_TD: Tensor) -> None:
        """Add the (converted) FFN's output to the stream."""
        start = 0
        for i, hidden in enumerate(self.hidden):
            size = hidden.shape[0] * hidden.shape[1]
            self.hidden[i] = hidden + output_TD[start : start + size].view_as(hidden)
            start += size
