"""Back from a split MoE to a dense model: all neurons in one FFN again.

Exact when no neuron is in two experts: the sum over all experts at unit weight is the dense FFN (of the refitted neurons, where a refit was
made). With the assignment file of the split, neurons return to the parent's order, and an untrained split without refit is the parent.

Shapes: D model width, F dense FFN width, S shared neurons, E experts, M neurons per expert.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import InputError
from moesaic.experts import split_file
from moesaic.flow import files
from moesaic.model import families, load
from moesaic.model.adapters import beside
from moesaic.model.depth import skip


@torch.no_grad()
def run(
    folder: Path, out: Path, factor: float | None = None, assignment: Path | None = None
) -> dict[str, Any]:
    """Write a LLaMA checkpoint.

    Args:
        factor: on the routed output at conversion (`times-k`: K); the down projections are divided by it. None: as the model's configuration says, by layer.
        assignment: assignment.parquet of the split.

    Raises:
        InputError: no factor, or one that the configuration contradicts, not an MoE, experts that share neurons, a trained gate on the shared expert, layers that skip or are dense and of another width,
            an adapter that lies beside the model, an assignment of another model, or an output that exists.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    files.refuse_existing(out)
    beside.refuse_half(folder, "a dense model")
    model = load.load_model(folder, "merge")
    if skip.layers(model):
        raise InputError(
            f"{folder}: its layers skip FFNs by routers of their own, which a dense model has no place for; `moesaic fold` first"
        )
    parts = list(families.parts(model))
    if not parts:
        raise InputError(f"{folder}: no layer has experts, there is nothing to merge")
    if getattr(model.config, split_file.OVERLAP, False):
        raise InputError(
            f"{folder}: several experts hold the same neurons (split copy, drop or sharing-inner), and a dense model would count them several times; "
            "such a split has no exact dense model"
        )
    for part in parts:
        gate = getattr(part.shared, "shared_expert_gate", None)
        if gate is not None and bool(gate.weight.any()):
            raise InputError(
                f"{folder}: layer {part.layer}: the gate of the shared expert was trained, so its share differs from token to token, and no dense model "
                "computes that; merge the constructed model, or set experts.family to one without such a gate"
            )
    factors = _factors(folder, model.config, len(parts), factor)
    matrices = [_neurons(part, own) for part, own in zip(parts, factors, strict=True)]
    width = matrices[0][0].shape[0]
    split = {part.layer for part in parts}
    for layer, block in enumerate(model.model.layers):
        if layer not in split and block.mlp.gate_proj.out_features != width:
            raise InputError(
                f"{folder}: layer {layer} is dense and {block.mlp.gate_proj.out_features} neurons wide, the experts of the others are {width} together; "
                "a LLaMA has one width"
            )
    orders = (
        _orders(assignment, model.config, len(parts), width)
        if assignment
        else [torch.arange(width)] * len(parts)
    )
    old = model.config
    keys = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings",
        "initializer_range", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    head = getattr(old, "head_dim", None) or old.hidden_size // old.num_attention_heads
    rope = {key: value for key, value in old.rope_parameters.items() if key != "partial_rotary_factor"}
    config = LlamaConfig(
        **{key: getattr(old, key) for key in keys},
        intermediate_size=width,
        head_dim=head,
        rope_parameters=rope,
        dtype=old.dtype,
    )
    dense: Any = LlamaForCausalLM(config).to(old.dtype)
    own, given = dense.state_dict(), model.state_dict()
    for name, tensor in own.items():
        if ".mlp." not in name or int(name.split(".")[2]) not in split:
            tensor.copy_(given[name])
    blocks = [dense.model.layers[part.layer] for part in parts]
    for block, (gate_FD, up_FD, down_DF), order_F in zip(blocks, matrices, orders, strict=True):
        block.mlp.gate_proj.weight.copy_(gate_FD[order_F])
        block.mlp.up_proj.weight.copy_(up_FD[order_F])
        block.mlp.down_proj.weight.copy_(down_DF[:, order_F])
    dense.generation_config = model.generation_config
    with files.atomic_path(out) as temporary:
        dense.save_pretrained(temporary)
        if (folder / "tokenizer.json").is_file():
            load.load_tokenizer(folder).save_pretrained(temporary)
    return {"ffn": width, "parameters": sum(tensor.numel() for tensor in dense.parameters())}


def _factors(folder: Path, config: Any, layers: int, given: float | None) -> list[float]:
    """Of each MoE layer. Raises InputError where nobody says, or two say otherwise."""
    known = getattr(config, families.FACTORS, None)
    if known is None:
        if given is None:
            raise InputError(
                f"{folder}: its configuration does not hold the factors on the routed output (made by an earlier version, or elsewhere); give --factor"
            )
        return [given] * layers
    if given is not None and any(abs(given / own - 1) > 1e-6 for own in known):
        listed = ", ".join(f"{own:.6g}" for own in dict.fromkeys(known))
        raise InputError(f"--factor {given:g}: {folder} was made with {listed}; leave it out")
    if len(known) != layers:
        raise InputError(
            f"{folder}/config.json: {families.FACTORS} holds {len(known)} factors, but {layers} layers have experts: it is not of this model; "
            "remove the key and give --factor"
        )
    return [float(own) for own in known]


def _neurons(part: families.Parts, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gate [F, D], up [F, D] and down [D, F]: the shared neurons, then expert after expert."""
    gate_EMD, up_EMD = part.experts.gate_up_proj.chunk(2, dim=1)
    scale = factor / float(getattr(part.router, "routed_scaling_factor", 1.0))
    down_DF = part.experts.down_proj.transpose(0, 1).flatten(1) / scale
    gate_FD, up_FD = gate_EMD.flatten(0, 1), up_EMD.flatten(0, 1)
    if part.shared is None or part.family.get_shared is None:
        return gate_FD, up_FD, down_DF
    gate_SD, up_SD, down_DS = part.family.get_shared(part.shared)
    return torch.cat([gate_SD, gate_FD]), torch.cat([up_SD, up_FD]), torch.cat([down_DS, down_DF], dim=1)


def _orders(path: Path, config: Any, layers: int, width: int) -> list[Tensor]:
    """Where each of the parent's neurons is among the MoE's. Raises InputError for an assignment of another model."""
    table = split_file.read(path, config).to_pandas()
    sizes = table.groupby("layer").size().tolist()
    if sizes != [width] * layers:
        raise InputError(
            f"{path}: {len(sizes)} layers of {sizes[0] if sizes else 0} neurons, the model has {layers} of {width}: the assignment of another model"
        )
    orders = []
    for _, rows in table.groupby("layer", sort=True):
        neurons = torch.tensor(rows["neuron"].tolist())
        if neurons.unique().numel() != width:
            raise InputError(f"{path}: neurons are in several experts; such a split has no exact dense model")
        orders.append(neurons.argsort())
    return orders
