"""Memory of a training stage before anything is submitted: weights, gradients, optimizer, activations.

Activations are what autograd keeps in the real class, counted on one and on two layers.
"""

import copy
import gc
import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from moesaic.model import execution, norms, size
from moesaic.train import chunked

PROBE_TOKENS = 32
BILLION = 1e9
DEPTH_KEYS = ("num_hidden_layers", "layer_types", "inserted_layers")
"""What may differ between two configurations whose layers keep as much."""
_SAVED: dict[tuple[str, str, bool], tuple[float, float]] = {}


def memory(
    settings: Mapping[str, Any],
    moe: Any,
    resident: Any,
    length: int,
    ranks: int,
    mixed: bool = True,
    base_gb: float = 1.0,
) -> dict[str, float]:
    """Bytes of one rank in GB, by what they are for.

    Args:
        moe, resident: the classes of what is trained and of the teacher beside it (or None), on the meta device. length: tokens of a sample. ranks: over which DeepSpeed or FSDP shards. mixed: bfloat16 products, as on a GPU.
        base_gb: of the process before anything is loaded (CUDA context, libraries).
    """
    counted = size.count(moe)
    frozen = {id(p): p for p in moe.parameters() if not p.requires_grad}
    if settings["optimizer"]["freeze_embeddings"]:
        frozen |= {id(m.weight): m.weight for m in (moe.get_input_embeddings(), moe.get_output_embeddings())}
    trained = counted.total - sum(p.numel() for p in frozen.values())
    stage = shards(settings)
    each, state = moe.dtype.itemsize, 2 * moe.dtype.itemsize
    if settings["engine"]["kind"] == "deepspeed" and mixed:
        each, state = 2, 12  # bfloat16 weights and gradients, and float32 copies with float32 moments
    away = offloaded(settings)
    weights = 0.0 if "param" in away else counted.total * each / (ranks if stage >= 3 else 1)
    gradients = trained * each / (ranks if stage >= 2 else 1)
    moments = 0.0 if "optimizer" in away else trained * state / (ranks if stage >= 1 else 1)
    tokens = settings["micro_batch"] * length
    per_token, fixed = saved_bytes(moe.config, type(moe), mixed)
    layer = tokens * per_token
    activations = layer * moe.config.num_hidden_layers
    if settings["engine"]["gradient_checkpointing"]:
        activations = tokens * moe.config.num_hidden_layers * moe.config.hidden_size * each + layer
    # of a chunk: logits in float32, which become their own gradient, and as much again: bfloat16 copies, or a teacher's smaller chunks; then the head's gradient
    head = 0 if settings["optimizer"]["freeze_embeddings"] else moe.config.hidden_size
    logits = (2 * min(chunked.CHUNK, tokens) + head) * moe.config.vocab_size * 4 + fixed * tokens
    teacher = size.count(resident).total * resident.dtype.itemsize if resident is not None else 0
    passes = max(1, settings["batch"] // (settings["micro_batch"] * max(1, ranks)))
    # with one pass a step, gradients come as activations go, the last of them beside the first layer's; with several the gradients stay.
    # the layer that is gone through backwards has gradients of its activations beside them
    moving = layer + (gradients + activations if passes > 1 else max(gradients + layer, activations))
    found = {
        "weights": weights, "gradients": gradients, "optimizer": moments, "activations": activations, "logits": logits, "teacher": teacher,
        "base": base_gb * BILLION,
    }  # fmt: skip
    found["total"] = weights + moments + moving + logits + teacher + base_gb * BILLION
    return {name: value / BILLION for name, value in found.items()}


def shards(settings: Mapping[str, Any]) -> int:
    """ZeRO stage of the stage's engine; 0: everything is on every rank."""
    engine = settings["engine"]
    if engine["kind"] == "fsdp":
        return 3
    return int(engine["json"]["zero_optimization"]["stage"]) if engine["kind"] == "deepspeed" else 0


def offloaded(settings: Mapping[str, Any]) -> set[str]:
    """What DeepSpeed keeps in the CPU's memory: optimizer (float32 copies and moments), param (the weights)."""
    engine = settings["engine"]
    zero = engine["json"]["zero_optimization"] if engine["kind"] == "deepspeed" else {}
    parts = {name: zero.get(f"offload_{name}") or {} for name in ("optimizer", "param")}
    return {name for name, part in parts.items() if part.get("device", "none") != "none"}


def saved_bytes(config: Any, kind: Any, mixed: bool) -> tuple[float, float]:
    """Bytes per token that autograd keeps for one decoder layer, and outside of the layers.

    Counted on the real class with one and with two layers and a small vocabulary, on a few tokens.
    """
    shape = {key: value for key, value in config.to_dict().items() if key not in DEPTH_KEYS}
    key = (kind.__name__, json.dumps(shape, sort_keys=True, default=str), mixed)
    if key in _SAVED:
        return _SAVED[key]
    kept = []
    for layers in (1, 2):
        small = copy.deepcopy(config)
        small.num_hidden_layers, small.vocab_size, small.pad_token_id = layers, 64, None
        if getattr(small, "first_k_dense_replace", None):
            small.first_k_dense_replace = 0
        if getattr(small, "mlp_only_layers", None):
            small.mlp_only_layers = []
        small.dtype = torch.float32
        model = _unwritten(kind, small)
        execution.apply(model, "grouped_mm" if mixed else "auto", torch.device("cpu"), logging.DEBUG)
        norms.apply(model)
        kept.append(_kept(model, mixed))
        del model
        gc.collect()  # modules and their hooks refer to each other, and the bfloat16 copies of a 7B model's layer are 400 MB
    _SAVED[key] = (kept[1] - kept[0], 2 * kept[0] - kept[1])
    return _SAVED[key]


def _unwritten(kind: Any, config: Any) -> Any:
    """The class with float32 weights that nobody has written: what is kept does not depend on them, and pages that are only read take no memory."""
    with torch.device("meta"):
        model = kind(config).float()
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() < 2:  # small ones lie in memory that was in use before
            tensor.data.zero_()
    return model


def _kept(model: Any, mixed: bool) -> float:
    """Bytes per token of the tensors that autograd keeps, parameters left out."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(PROBE_TOKENS)[None] % 64
    alive = []
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        alive.append(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if mixed:  # bfloat16 copies of the weights are kept too, but once per layer and not per token
        weights = {p.numel() * 2 for p in model.parameters()}
        seen = {place: count for place, count in seen.items() if count not in weights}
    return sum(seen.values()) / PROBE_TOKENS
