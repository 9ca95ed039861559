"""Step `construct`: the dense parent becomes an MoE in a standard transformers architecture, checked against the parent.

Layer by layer: the memory of one layer and its statistics, whatever the model's size; an interrupted run goes on with the next layer.
"""

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic import config
from moesaic.errors import InputError
from moesaic.experts import (
    audit,
    calibration,
    clusters,
    room,
    scale,
    sizes,
    split_file,
    split_layers,
    splits,
    walk,
    whole_layers,
)
from moesaic.experts.assignment import Sizes
from moesaic.experts.build import Builder
from moesaic.experts.trace import Trace
from moesaic.flow import files, manifest
from moesaic.flow.step import STEPS, Context, Result
from moesaic.model import families, load, size
from moesaic.model.lazy import LazyModel

log = logging.getLogger("moesaic.construct")

PROOF_TOKENS = 128


@dataclass(frozen=True)
class Converted:
    """What a conversion found; the model and its papers are files."""

    model: Any
    """The finished model, read back by plain transformers."""
    widths: Sizes
    dense_layers: tuple[int, ...]
    """Layers that keep the parent's FFN."""
    proof: dict[str, Any]
    layers: list[dict[str, Any]]
    """Figures of each layer, empty for those left dense."""


def run(context: Context) -> Result:
    """Split, initialise routers, refit, check, save `model/`, `assignment.parquet`, `equivalence.json`, `audit.json`."""
    settings, seed = context.settings["experts"], context.settings["seed"]
    dense_step, tokens = context.inputs["dense"], context.inputs["tokens"]
    sizes.sizes(dense_step.metrics["ffn"], settings)
    manifest.verify(dense_step)
    dense = LazyModel(dense_step.folder / "model", "construct: dense parent")
    text = calibration.blocks(tokens, context.settings["held_out"], settings["calibration"], seed)
    work = _work(context)
    tokenizer = load.load_tokenizer(dense.folder)
    threads = torch.get_num_threads()
    workers = threads if threads > 1 else 0  # a pool of one would import everything once more
    found = convert(dense, settings, text, seed, context.out, work, workers, tokenizer)
    widths, counted = found.widths, size.count(found.model)
    metrics: dict[str, Any] = {
        "architecture": found.model.config.architectures[0],
        "vocab_size": found.model.config.vocab_size,
        "experts": widths.experts,
        "per_token": settings["per_token"],
        "shared": widths.shared,
        "neurons": widths.neurons,
        "active_ffn": _active_ffn(widths, settings["per_token"], dense.layers, len(found.dense_layers)),
        "parameters": counted.total,
        "active_parameters": counted.active,
        "equivalence_error": found.proof["max_logit_error"],
    }
    if found.dense_layers:
        metrics["dense_layers"] = list(found.dense_layers)
    for name, key in (("mean_relative_error", "error"), ("lift", "lift"), ("expected_load_cv", "load_cv")):
        values = [item[key] for item in found.layers if key in item]
        if values:
            metrics[name] = round(sum(values) / len(values), 6)
    outputs = ["model", "assignment.parquet", "equivalence.json", "audit.json"]
    return Result(outputs, metrics, cleanup=functools.partial(files.discard, work))


def convert(
    dense: LazyModel,
    settings: dict[str, Any],
    text: calibration.Text,
    seed: int,
    out: Path,
    work: Path,
    workers: int = 0,
    tokenizer: Any = None,
) -> Converted:
    """Everything from the dense parent to the checked files in `out`.

    Args:
        settings: schema.Experts as a dict. work: folder of this conversion alone, for what an interrupted one goes on from; the caller clears it away
        when the result is safe. workers: processes for splits, 0 for none.
        tokenizer: saved with the model, and reads the text for its clusters.

    Raises:
        InputError: sizes that do not fit, text too short, no room on the disk, damaged weights, a conversion that is not exact.
    """
    widths = sizes.sizes(dense.config.intermediate_size, settings)
    shape = sizes.shape(widths, dense.layers, settings)
    family, reasons = families.choose(shape, dense.config, settings["family"])
    for name, reason in reasons.items():
        log.info("architecture %s: %s", name, reason)
    by_layer = sizes.by_layer(settings, dense.layers)
    cluster_N = _clusters(by_layer, text, widths.experts, tokenizer, seed)
    if cluster_N is not None:
        # before the pass over the text, which takes long
        split_layers.check_clusters(cluster_N, widths.experts)
    trace = None
    _check_room(dense, family, shape, text, by_layer, work)
    if room.traced(by_layer):
        trace = Trace(dense, text, settings["calibration"]["batch"], work)
        trace.run()
    costs: list[float] | None = None
    chosen = () if whole_layers.counted(settings) else shape.dense_layers
    assignments = split_layers.run(dense, trace, cluster_N, by_layer, widths, chosen, seed, work, workers)
    if whole_layers.counted(settings):
        chosen, costs = whole_layers.choose(work, dense.layers, settings["dense_layers"])
        log.info("layers left dense: %s", ", ".join(map(str, chosen)))
        shape = replace(shape, dense_layers=chosen)
        family, reasons = families.choose(shape, dense.config, settings["family"])
        assignments = [None if i in chosen else found for i, found in enumerate(assignments)]
    ids_1T = text.ids_NT[:1, :PROOF_TOKENS]
    builder = Builder(dense, family, shape, work / "layers", ids_1T, _common_factor(by_layer))
    layers = walk.run(builder, assignments, by_layer, text, trace, seed, work)
    proof = builder.equivalence()
    split = split_file.table(assignments)
    factors = [
        found.get("factor", scale.factor(settings))
        for found, settings, assignment in zip(layers, by_layer, assignments, strict=True)
        if assignment is not None
    ]
    told = split_file.keys(split) | {families.FACTORS: factors}
    if settings["split"] in sizes.COPYING:
        told[families.PIECES] = widths.granularity
    builder.finish(out / "model", tokenizer, told)
    model = load.load_model(out / "model", "construct")
    proof["reload_error"] = _reload_error(builder, model, ids_1T, out / "model")
    files.write_json(out / "equivalence.json", proof)
    audited = [item for item in layers if "lift" in item]
    audit.warn(audited)
    record: dict[str, Any] = {"family": reasons, "layers": layers}
    if costs is not None:
        record["costs"] = costs
    if audited:
        record["routing"] = audit.routing(walk.routes(work, dense.layers), widths.experts, seed)
    files.write_json(out / "audit.json", record)
    split_file.write(out / "assignment.parquet", split)
    return Converted(model, widths, shape.dense_layers, proof, layers)


def _check_room(
    dense: LazyModel, family: families.Family, shape: families.Shape, text: calibration.Text, by_layer: list[dict[str, Any]], work: Path
) -> None:  # fmt: skip
    """Look for room before hours of work, less what an interrupted conversion left.

    Raises:
        InputError: there is none.
    """
    with torch.device("meta"):
        model = families.build(family, dense.config, shape)
    need = room.needed(model, by_layer, text.ids_NT.numel(), dense.config.hidden_size).total
    there = sum(path.stat().st_blocks * 512 for path in work.rglob("*") if path.is_file())
    advice = "free some space, or lower experts.calibration.tokens"
    files.check_room(work, max(0, need - there), "the conversion", advice)


def _active_ffn(widths: Sizes, per_token: int, layers: int, dense: int) -> float:
    """Share of the parent's FFN neurons that run for a token, mean over the layers."""
    active = (widths.shared + per_token * widths.neurons) / widths.width
    return (active * (layers - dense) + dense) / layers


def _clusters(
    by_layer: list[dict[str, Any]], text: calibration.Text, count: int, tokenizer: Any, seed: int
) -> Tensor | None:
    """Data cluster of each fitting block, when a split goes by importance."""
    if not any("importance" in splits.needs(settings) for settings in by_layer):
        return None
    fitted = slice(0, text.fitted)
    if by_layer[0]["calibration"]["clusters"] == "domain":
        return clusters.by_domain(text.domain_N[fitted], count)
    return clusters.by_text(
        [tokenizer.decode(ids, skip_special_tokens=True) for ids in text.ids_NT[fitted].tolist()], count, seed
    )


def _common_factor(by_layer: list[dict[str, Any]]) -> float | None:
    """The factor that all layers have, when it does not depend on data."""
    names = {settings["scale"] for settings in by_layer}
    if len(names) > 1 or "calibrated" in names:
        return None
    return scale.factor(by_layer[0])


def _work(context: Context) -> Path:
    """A folder for these settings and inputs; what other settings left behind is removed."""
    inputs = {name: files.sha256(manifest.path_of(found.folder)) for name, found in context.inputs.items()}
    known = {"settings": context.settings, "inputs": inputs, "version": STEPS["construct"].version}
    own = context.work / f"layers-{config.digest(known)[:16]}"
    for other in context.work.glob("layers-*"):
        if other != own:
            files.discard(other)
    own.mkdir(parents=True, exist_ok=True)
    return own


@torch.no_grad()
def _reload_error(builder: Builder, model: Any, ids_1T: Tensor, folder: Path) -> float:
    """Largest logit difference between the layers as they were built and the model that plain transformers reads back.

    A model in bfloat16 is run in float32, as the layers were proved: in bfloat16 a router whose scores lie close together picks other experts.
    """
    expected = builder.logits("sparse")
    exact = builder.dense.dtype == torch.float32
    found = model(input_ids=ids_1T).logits[0] if exact else builder.rerun(model, ids_1T)
    error, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not error <= largest * 1e-4:
        raise InputError(
            f"construct: the saved model in {folder} computes other logits than the layers it was made of (difference {error:.3g})"
        )
    return error
