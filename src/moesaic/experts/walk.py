"""Fit and write the layers one after the other, each on the hidden states that the converted ones before it give.

What is done is in the work folder: layers, proofs, figures and the residual streams, so that an interrupted run goes on with the next layer.
It stays there when all are done: a run that is killed later repeats no fit.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesaic.experts import audit, calibration, layer, routers
from moesaic.experts.assignment import Assignment
from moesaic.experts.build import Builder
from moesaic.experts.features import Ffn
from moesaic.experts.stream import Stream
from moesaic.experts.trace import Trace
from moesaic.flow import files
from moesaic.flow.progress import Progress
from moesaic.model.lazy import attend, ffn_of

log = logging.getLogger("moesaic.construct")


@torch.no_grad()
def run(
    builder: Builder,
    assignments: list[Assignment | None],
    by_layer: list[dict[str, Any]],
    text: calibration.Text,
    trace: Trace | None,
    seed: int,
    work: Path,
) -> list[dict[str, Any]]:
    """Fit and write the layers one after the other, each on the hidden states that the converted ones before it give.

    Args:
        trace: the dense parent on the same text, for layers that make up for earlier errors; see `compensates`.
    """
    dense, family = builder.dense, builder.family
    positions = dense.positions(text.ids_NT.shape[1])
    parts = calibration.batches(text.fold_N, by_layer[0]["calibration"]["batch"])
    stream = Stream(work, "moe", (*text.ids_NT.shape, dense.config.hidden_size))
    stream.begin((part, dense.embedding()[text.ids_NT[part]]) for part in parts)
    builder.resume(stream.layer)
    if stream.layer:
        log.info("%d layers are there already, going on with layer %d", stream.layer, stream.layer)
    streamed = any(_calibrated(settings) for settings in by_layer) or text.fitted < len(text.ids_NT)
    ridge = _last_ridge(work, stream.layer)
    progress = Progress("convert layers", dense.layers, "layers", start=stream.layer)
    for index in range(stream.layer, dense.layers):
        block = dense.layer(index)
        ffn = ffn_of(block)
        settings, assignment = by_layer[index], assignments[index]
        activations = None
        if streamed:
            for part in parts:
                stream.after[part], _ = attend(block, stream.now[part], positions)
            activations = calibration.LayerActivations(
                ffn,
                block.post_attention_layernorm,
                stream.after,
                text.fold_N,
                parts,
                trace.inputs_LNTD[index + 1] if trace is not None and compensates(settings) else None,
                settings["compensate"],
            )
        fitted: layer.Layer | None = None
        if assignment is not None:
            fitted = layer.fit(ffn, activations, assignment, settings, family, ridge, seed, index)
            ridge = fitted.audit.get("ridge", ridge)
        _audit(work, index, ffn, fitted, activations, settings, family.scores, seed)
        if activations is not None:
            for place, part in enumerate(parts):
                if fitted is None:
                    added = activations.at(place).h_TF @ ffn.down_DF.T
                else:
                    added = layer.output(fitted, activations, settings, family.scores, place)
                stream.after[part] += added.view_as(stream.after[part])
        builder.add(index, block, ffn, fitted, seed)
        stream.advance()
        error = None if fitted is None else fitted.audit.get("error")
        progress.update(detail=f"relative error {error:.3f}" if error is not None else "")
    return [files.read_json(work / f"audit-{index:03}.json") for index in range(dense.layers)]


def compensates(settings: dict[str, Any]) -> bool:
    """True when the layer's fit aims at the dense parent's residual stream."""
    return settings["reconstruct"] != "none" and settings["compensate"] > 0


def _audit(
    work: Path,
    index: int,
    ffn: Ffn,
    fitted: layer.Layer | None,
    activations: calibration.LayerActivations | None,
    settings: dict[str, Any],
    scores: str,
    seed: int,
) -> None:
    """Audit a layer on the held-out blocks; keep the figures and the chosen experts in the work folder."""
    found = {} if fitted is None else dict(fitted.audit)
    if fitted is not None and activations is not None and len(activations.held_out()):
        audited = audit.of_layer(ffn, fitted, activations, settings, scores, seed * 1009 + index)
        found |= audited.summary(seed * 1009 + index)
        with files.atomic_path(work / f"routes-{index:03}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, torch.cat(audited.index_TK).numpy())
    files.write_json(work / f"audit-{index:03}.json", found)


def routes(work: Path, layers: int) -> list[Tensor]:
    """Chosen experts [T, K] of every MoE layer on the held-out blocks."""
    paths = [work / f"routes-{index:03}.npy" for index in range(layers)]
    return [torch.from_numpy(np.load(path)) for path in paths if path.exists()]


def _calibrated(settings: dict[str, Any]) -> bool:
    """True when a fit of the layer needs activations."""
    return bool(
        routers.METHODS[settings["router"]].NEEDS_ACTIVATIONS
        or settings["reconstruct"] != "none"
        or settings["scale"] == "calibrated"
        or settings["balance"] > 0
    )


def _last_ridge(work: Path, done: int) -> float:
    for index in range(done - 1, -1, -1):
        found = files.read_json(work / f"audit-{index:03}.json")
        if "ridge" in found:
            return float(found["ridge"])
    return 0.1
