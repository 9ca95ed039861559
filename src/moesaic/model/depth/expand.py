"""More decoder layers: copies of layers, put behind the layers that they were copied from. The result is the same architecture, only deeper.

How a new layer starts is its method. `zero` (LLaMA-Pro, arXiv 2401.02415; DLO, arXiv 2407.11030) sets the output projections of attention and FFN to
zero, so that the layer adds nothing to the residual stream and the model computes exactly what it did; they are the first to get a gradient. The other
methods change the function and need training.

Shapes: E routed experts, D model width, M neurons per expert, H width of all attention heads.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.model import families
from moesaic.model.depth import skip

Init = Callable[[nn.Module, nn.Module | None], None]
"""(a copy of a layer, which is changed in place; the layer before the copied one, None for layer 0)."""
PARALLEL = 0.9995
"""Slerp of vectors closer than this (cosine) is linear interpolation: the angle's sine would lose all digits."""


@torch.no_grad()
def zero(layer: nn.Module, before: nn.Module | None) -> None:
    """The layer adds nothing: attention's output projection and the FFN's down projections are zero."""
    for weight in outputs(layer):
        weight.zero_()


def keep(layer: nn.Module, before: nn.Module | None) -> None:
    """A plain copy: the layer is run twice."""


@torch.no_grad()
def slerp(layer: nn.Module, before: nn.Module | None) -> None:
    """Halfway between the copied layer and the one before it on the sphere, tensor by tensor; norms are averaged."""
    _merge(layer, before, "slerp", lambda one, two: spherical(one, two, 0.5))


@torch.no_grad()
def mean(layer: nn.Module, before: nn.Module | None) -> None:
    """The mean of the copied layer and the one before it."""
    _merge(layer, before, "mean", lambda one, two: (one + two) / 2)


METHODS: dict[str, Init] = {"zero": zero, "copy": keep, "slerp": slerp, "mean": mean}


def expand(model: Any, settings: Mapping[str, Any]) -> list[int]:
    """Insert layers into a model, in place.

    Args:
        model: a causal language model of a dense parent or of an MoE family. settings: schema.Expand as a dict.

    Returns:
        The numbers of the new layers; they are in `config.inserted_layers` too, and so in config.json.

    Raises:
        InputError: a layer that does not exist; a merge without a second layer, or of experts.
    """
    if skip.layers(model):
        raise InputError("tune.depth.expand: this model skips already; expand it before it learns to skip")
    old = list(model.model.layers)
    after = places(len(old), settings["every"], settings["after"])
    method = settings["method"]
    if method in ("slerp", "mean") and families.is_moe(model):
        raise InputError(
            f"tune.depth.expand.method: {method} merges two layers neuron by neuron, and the experts of two layers do not correspond; take zero or copy"
        )
    layers: list[nn.Module] = []
    origin: list[int] = []
    inserted: list[int] = []
    for index, layer in enumerate(old):
        layers.append(layer)
        origin.append(index)
        for _ in range(after.count(index)):
            new = copy.deepcopy(layer)
            METHODS[method](new, old[index - 1] if index else None)
            inserted.append(len(layers))
            layers.append(new)
            origin.append(index)
    relabel(model, layers, origin)
    before = getattr(model.config, "inserted_layers", None) or []
    model.config.inserted_layers = sorted({*before, *inserted})
    return inserted


def places(layers: int, every: int | None, after: Sequence[int]) -> list[int]:
    """The layers behind which a new one goes, sorted; a layer that is named twice gets two.

    Raises:
        InputError: naming the key.
    """
    if after:
        wrong = [index for index in after if index >= layers]
        if wrong:
            raise InputError(
                f"tune.depth.expand.after: {wrong} do not exist, the model has the layers 0 to {layers - 1}"
            )
        return sorted(after)
    assert every is not None
    if every > layers:
        raise InputError(
            f"tune.depth.expand.every: {every} is more than the model's {layers} layers, nothing would be inserted"
        )
    return list(range(every - 1, layers, every))


def relabel(model: Any, layers: Sequence[nn.Module], origin: Sequence[int]) -> None:
    """Give a model these layers, and its configuration what follows from that.

    Args:
        origin: for each new layer the old number of the layer that it is, or was copied from.
    """
    for index, layer in enumerate(layers):
        parts: list[Any] = list(layer.modules())
        for module in parts:
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    model.model.layers = nn.ModuleList(layers)
    config = copy.deepcopy(model.config)
    dense = set(getattr(config, "mlp_only_layers", None) or [])
    first = getattr(config, "first_k_dense_replace", None)
    types = getattr(config, "layer_types", None)
    inserted = set(getattr(config, "inserted_layers", None) or [])
    factors = getattr(config, families.FACTORS, None)
    if factors:
        # one for each layer with experts, in the old order
        sparse = [index for index in range(config.num_hidden_layers) if not _dense(index, dense, first)]
        by_layer = dict(zip(sparse, factors, strict=True))
        setattr(config, families.FACTORS, [by_layer[index] for index in origin if index in by_layer])
    config.num_hidden_layers = len(layers)
    if dense:
        config.mlp_only_layers = [number for number, index in enumerate(origin) if index in dense]
    if first:
        config.first_k_dense_replace = sum(index < first for index in origin)
    if types:
        config.layer_types = [types[index] for index in origin]
    if inserted:
        config.inserted_layers = [number for number, index in enumerate(origin) if index in inserted]
    model.config = model.model.config = config
    for module in model.model.layers.modules():
        if hasattr(module, "config") and module.config is not config:
            module.config = config


def _dense(index: int, listed: set[int], first: int | None) -> bool:
    """Whether a layer of an MoE is one without experts, by its configuration."""
    return index in listed or index < (first or 0)


def outputs(layer: Any) -> list[Tensor]:
    """The weights through which a decoder layer writes into the residual stream: attention's o_proj, then the FFN's."""
    return [layer.self_attn.o_proj.weight, *ffn_outputs(layer)]


def ffn_outputs(layer: Any) -> list[Tensor]:
    """Down projections of a layer's FFN: [D, F] of a dense one; [E, D, M] of the experts and [D, S] of the shared expert."""
    parts = list(families.parts(layer))
    if not parts:
        return [layer.mlp.down_proj.weight]
    found = [parts[0].experts.down_proj]
    if parts[0].shared is not None:
        shared = parts[0].shared
        if hasattr(shared, "output_linear"):  # granitemoeshared
            found.append(shared.output_linear.weight)
        else:  # qwen2_moe gives the block that holds it, glm4_moe the module itself
            found.append(getattr(shared, "shared_expert", shared).down_proj.weight)
    return found


def spherical(one: Tensor, two: Tensor, t: float) -> Tensor:
    """Slerp (Shoemake 1985) of two tensors as vectors: the direction on the arc between them, the length interpolated linearly."""
    a, b = one.double().flatten(), two.double().flatten()
    lengths = a.norm(), b.norm()
    if not lengths[0] or not lengths[1]:
        return (1 - t) * one + t * two
    cosine = float(torch.dot(a / lengths[0], b / lengths[1]))
    if abs(cosine) > PARALLEL:
        return (1 - t) * one + t * two
    angle = math.acos(cosine)
    direction = (
        math.sin((1 - t) * angle) * (a / lengths[0]) + math.sin(t * angle) * (b / lengths[1])
    ) / math.sin(angle)
    return (direction * ((1 - t) * lengths[0] + t * lengths[1])).view_as(one).to(one.dtype)


def _merge(
    layer: nn.Module, before: nn.Module | None, method: str, join: Callable[[Tensor, Tensor], Tensor]
) -> None:
    if before is None:
        raise InputError(
            f"tune.depth.expand: {method} merges a layer with the one before it, and layer 0 has none; leave 0 out of `after`, or take zero or copy"
        )
    other = dict(before.named_parameters())
    for name, parameter in layer.named_parameters():
        two = other[name]
        parameter.copy_(join(parameter, two) if parameter.ndim > 1 else (parameter + two) / 2)
