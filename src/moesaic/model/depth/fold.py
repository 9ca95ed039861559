"""Back to a standard architecture: layers whose FFN always runs become ordinary layers, those whose FFN never runs get a zero FFN or are taken out.

What is exact and what is not:

- Never running, by construction (static pruning): exact. The down projections are zero, so the layer adds nothing; the zeros are multiplied, though.
- Always running: the gate g = 1 + G (s - 1/2) goes into the down projections. Exact for G = 0 and for a router that does not look at its input; otherwise g is
  between 1 + G (threshold - 1/2) and 1 + G / 2, its middle is taken, and the FFN's output is off by at most half of that range (1.25 % with the defaults).
- A routed layer counts as always or never running by the share that was measured on validation text: other text may differ.
- Layers in between cannot be expressed. They are refused, or, when asked, rounded to what most tokens do.
- A layer that adds nothing at all (an inserted one with a zero output projection of attention and a zero FFN) is taken out: exact.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from moesaic.errors import InputError
from moesaic.model.depth import expand, skip


@dataclass
class Folded:
    """A standard model, and what became of the skipping layers (numbers of the skipping model)."""

    model: Any
    on: list[int] = field(default_factory=list)
    off: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    rounded: list[int] = field(default_factory=list)
    """Neither always on nor always off: what most tokens did was taken."""
    gate_error: float = 0.0
    """Largest relative error of an FFN's output by a gate that depends on the token."""

    def facts(self) -> dict[str, Any]:
        """Without the model."""
        return {name: getattr(self, name) for name in ("on", "off", "removed", "rounded", "gate_error")}


@torch.no_grad()
def fold(model: Any, approximate: bool = False, shares: Mapping[int, float] | None = None) -> Folded:
    """A new standard model; the given one is left alone.

    Args:
        approximate: round layers that run for some tokens only. shares: of the tokens that ran, by layer; None takes what the model was saved with.

    Raises:
        InputError: a layer that runs for some tokens only, or that was never measured.
    """
    found = skip.layers(model)
    standard = type(model)(model.config)
    state = {name: value for name, value in model.state_dict().items() if ".depth_router." not in name}
    # assigned, so that each keeps its own dtype: routers' biases are float32 in a bfloat16 model
    standard.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    standard.tie_weights()
    standard.generation_config = copy.deepcopy(model.generation_config)
    out = Folded(standard.eval())
    for index, item in found.items():
        share = item.share if shares is None else shares[index]
        if share is None:
            raise InputError(
                f"layer {index}: nobody has measured how many tokens run; train with validation, or evaluate the model and give the shares"
            )
        if 0.0 < share < 1.0:
            if not approximate:
                raise InputError(
                    f"layer {index} runs for {share:.1%} of the tokens, which no standard class can express; keep the skipping model, or round (--approximate)"
                )
            out.rounded.append(index)
        weights = expand.ffn_outputs(standard.model.layers[index])
        if share < 0.5:
            out.off.append(index)
            for weight in weights:
                weight.zero_()
            continue
        out.on.append(index)
        factor, error = _gate(item)
        out.gate_error = max(out.gate_error, error)
        for weight in weights:
            weight.mul_(factor)
    kept: list[int] = []
    for index, layer in enumerate(standard.model.layers):
        empty = index in found and not any(weight.any() for weight in expand.outputs(layer))
        (out.removed if empty else kept).append(index)
    if out.removed and kept:
        expand.relabel(standard, [standard.model.layers[index] for index in kept], kept)
    return out


def _gate(item: skip.LayerSkip) -> tuple[float, float]:
    """Factor of the FFN's output where it runs, and the largest relative error of taking one for all tokens."""
    router: Any = item.router
    if not router.weight.any():
        bias = 0.0 if router.bias is None else float(router.bias)
        return 1.0 + item.gate * (torch.tensor(bias).sigmoid().item() - 0.5), 0.0
    low, high = 1.0 + item.gate * (item.threshold - 0.5), 1.0 + item.gate * 0.5
    middle = (low + high) / 2
    return middle, (high - low) / 2 / middle
