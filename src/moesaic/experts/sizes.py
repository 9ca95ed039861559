"""The widths that a configuration asks for, checked against the dense parent.

Shapes: F dense FFN width, S shared neurons, E experts, M neurons per expert.
"""

import math
from typing import Any

from moesaic.errors import InputError
from moesaic.experts import whole_layers
from moesaic.experts.assignment import Sizes
from moesaic.model.families import Shape
from moesaic.schema import layer_numbers

COPYING = ("copy", "drop")
MULTIPLE = 8
"""Rows of the experts' matrices must begin at multiples of 16 bytes, in bfloat16 too."""


def sizes(ffn: int, settings: dict[str, Any]) -> Sizes:
    """Widths of every MoE layer. Raises InputError when the neurons do not divide by the experts."""
    experts, granularity = settings["experts"], settings["granularity"]
    copying = settings["split"] in COPYING
    pieces = granularity if copying else experts
    if settings["shared_experts"]:
        parts = settings["shared_experts"] + pieces
        if ffn % parts:
            raise InputError(
                f"experts.shared_experts: {settings['shared_experts']} shared and {pieces} other experts do not divide the FFN width {ffn}; "
                f"it divides by {_divisors(ffn)}"
            )
        shared = settings["shared_experts"] * (ffn // parts)
    else:
        shared = settings["shared"]
    if shared >= ffn:
        raise InputError(
            f"experts.shared: {shared} shared neurons leave none of the model's {ffn} for routed experts"
        )
    if (ffn - shared) % pieces:
        raise InputError(
            f"experts.experts: {pieces} {'pieces' if copying else 'experts'} do not divide the FFN width {ffn} less {shared} shared neurons; "
            f"{ffn - shared} divides by {_divisors(ffn - shared)}; or change experts.shared"
        )
    neurons = (ffn - shared) // pieces
    if settings["split"] == "sharing-inner":
        wider = neurons * (1 + settings["sharing"]["overlap"])
        # to the nearest multiple, but never so few that a neuron finds no place
        least = math.ceil(neurons / MULTIPLE) * MULTIPLE
        neurons = min(max(round(wider / MULTIPLE) * MULTIPLE, least), ffn - shared)
    if neurons % MULTIPLE:
        raise InputError(
            f"experts.experts: experts of {neurons} neurons; torch's grouped matrix product needs a multiple of {MULTIPLE} "
            f"({ffn - shared} routed neurons in {pieces}); change experts.experts or experts.shared"
        )
    return Sizes(ffn, shared, experts, neurons, granularity)


def shape(found: Sizes, layers: int, settings: dict[str, Any]) -> Shape:
    """What the architecture has to express; where layers are still to be chosen, with the last ones dense.

    Raises:
        InputError: layers that the parent does not have.
    """
    dense_layers = whole_layers.listed(settings, layers)
    wrong = [layer for layer in dense_layers if layer >= layers]
    if wrong:
        raise InputError(
            f"experts.dense_layers: layer {wrong[0]} does not exist, the parent has {layers} (from 0)"
        )
    if len(dense_layers) >= layers:
        raise InputError("experts.dense_layers: every layer is left dense, none becomes an MoE")
    return Shape(
        found.experts,
        settings["per_token"],
        found.neurons,
        found.shared,
        tuple(dense_layers),
        bias=settings["family"] == "glm4_moe" and settings["balance"] > 0,
    )


def by_layer(settings: dict[str, Any], layers: int) -> list[dict[str, Any]]:
    """The settings of each layer, with `layers` laid over the common ones. Raises InputError for layers that do not exist."""
    out = [dict(settings) for _ in range(layers)]
    for key, changes in settings["layers"].items():
        for layer in layer_numbers(key):
            if layer >= layers:
                raise InputError(
                    f"experts.layers.{key}: layer {layer} does not exist, the parent has {layers} (from 0)"
                )
            for name, value in changes.items():
                old = out[layer][name]
                out[layer][name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, 65) if number % n == 0)
