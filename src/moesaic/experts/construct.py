"""Step `construct`: the dense parent becomes an MoE in a standard transformers architecture, checked against the parent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from moesaic.data import packed
from moesaic.errors import InputError
from moesaic.experts import calibrate, convert
from moesaic.experts.assignment import generator
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context, Result
from moesaic.model import load, size


def run(context: Context) -> Result:
    """Split, initialise routers, refit, check, save `model/`, `assignment.parquet`, `equivalence.json`, `audit.json`."""
    settings, seed = context.settings["experts"], context.settings["seed"]
    dense_step, tokens = context.inputs["dense"], context.inputs["tokens"]
    neurons = convert.neurons_per_expert(dense_step.metrics["ffn"], settings)
    manifest.verify(dense_step)
    dense = load.load_model(dense_step.folder / "model", "construct: dense parent")
    blocks = calibration_blocks(tokens, context.settings["held_out"], settings["calibration"], seed)
    batch = settings["calibration"]["batch"]
    batches = [blocks[i : i + batch] for i in range(0, len(blocks), batch)]
    scale = convert.scale_factor(settings)

    def give() -> Iterator[Tensor]:
        return iter(batches)

    layers = calibrate.construct_layers(dense, give, len(batches), settings, scale, seed)
    check = convert.build(dense, layers, settings, refitted=False)
    proof = convert.equivalence(dense, check, settings, batches[0][:1])
    refitted = settings["reconstruct"] != "none"
    model = convert.build(dense, layers, settings, refitted=True) if refitted else check
    with files.atomic_path(context.out / "model") as folder:
        model.save_pretrained(folder)
        load.load_tokenizer(dense_step.folder / "model").save_pretrained(folder)
    proof["reload_error"] = _reload_error(model, context.out / "model", batches[0][:1])
    files.write_json(context.out / "equivalence.json", proof)
    files.write_json(context.out / "audit.json", {"layers": [layer.audit for layer in layers]})
    _write_assignment(context.out / "assignment.parquet", layers)
    counted = size.count(model)
    errors = [layer.audit["error"] for layer in layers if layer.audit]
    metrics: dict[str, Any] = {
        "architecture": model.config.architectures[0],
        "vocab_size": model.config.vocab_size,
        "experts": settings["experts"],
        "per_token": settings["per_token"],
        "shared": settings["shared"],
        "neurons": neurons,
        "active_ffn": (settings["shared"] + settings["per_token"] * neurons) / dense_step.metrics["ffn"],
        "parameters": counted.total,
        "active_parameters": counted.active,
        "equivalence_error": proof["max_logit_error"],
    }
    if errors:
        metrics["mean_relative_error"] = round(sum(errors) / len(errors), 6)
    return Result(["model", "assignment.parquet", "equivalence.json", "audit.json"], metrics)


def calibration_blocks(tokens: Manifest, held_out: list[str], settings: dict[str, Any], seed: int) -> Tensor:
    """Training blocks for the statistics, [N, T], shared evenly by the trained domains, in a fixed random order."""
    domains = [name for name in packed.domains(tokens) if name not in held_out]
    if not domains:
        raise InputError("data.domains: every domain is held out, none is left for calibration")
    manifest.verify(tokens, only=[f"{name}.train" for name in domains])
    block = tokens.metrics["block"]
    each = max(1, round(settings["tokens"] / block / len(domains)))
    found = []
    for index, name in enumerate(domains):
        blocks = packed.open_blocks(tokens, name, "train")
        rows = torch.randperm(len(blocks), generator=generator(seed, index, 3))[:each].tolist()
        found.append(torch.from_numpy(blocks.tokens(rows)).long())
    joined = torch.cat(found)
    return joined[torch.randperm(len(joined), generator=generator(seed, 0, 4))]


@torch.no_grad()
def _reload_error(model: Any, folder: Path, ids_BT: Tensor) -> float:
    """Largest logit difference between the model in memory and the one read back; a saved model must be the model."""
    again = load.load_model(folder, "construct")
    error = float((again(input_ids=ids_BT).logits - model(input_ids=ids_BT).logits).abs().max())
    if error != 0.0:
        raise InputError(
            f"construct: the saved model in {folder} computes other logits than the one in memory (difference {error:.3g})"
        )
    return error


def _write_assignment(path: Path, layers: list[calibrate.Layer]) -> None:
    columns: dict[str, list[Any]] = {"layer": [], "neuron": [], "expert": [], "score": []}
    for index, layer in enumerate(layers):
        width = layer.assignment.score_F.numel()
        columns["layer"] += [index] * width
        columns["neuron"] += range(width)
        columns["expert"] += layer.assignment.expert_of().tolist()
        columns["score"] += layer.assignment.score_F.tolist()
    schema = pa.schema(
        [("layer", pa.int32()), ("neuron", pa.int32()), ("expert", pa.int32()), ("score", pa.float32())]
    )
    with files.atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary, compression="zstd")
