"""Read everything that the report shows from the steps' folders. Nothing is computed here that is not in the files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.flow import metrics
from moesaic.flow.manifest import Manifest

DENSE = "dense"
Score = dict[str, Any]
Series = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Point:
    """One model of the run: the dense parent, or a variant after a stage."""

    variant: str | None
    stage: str
    model: Manifest
    run: dict[str, Any]
    active_ffn: float
    """Share of the dense parent's FFN multiplications that a token takes part in (routers left out)."""
    scores: dict[tuple[str, str], Score] = field(default_factory=dict)
    """(task, metric) -> entry of scores.json."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What the evaluation measured: tokens_per_second and the like."""
    routing: dict[str, np.ndarray] = field(default_factory=dict)
    """Domain -> share of the token slots [layers, experts]; rows sum to 1."""
    samples: list[dict[str, str]] = field(default_factory=list)
    curves: Series = field(default_factory=dict)
    depth: dict[str, Any] = field(default_factory=dict)
    """depth.json of the evaluation, of a model whose layers skip."""
    paired: dict[tuple[str, str], Score] = field(default_factory=dict)
    """(task, metric) -> difference to the dense parent on the same items, from paired.json."""
    reliability: dict[str, Any] = field(default_factory=dict)
    """reliability.json of the evaluation, where the suite was run."""
    images: dict[str, Any] = field(default_factory=dict)
    """images.json of the evaluation, where there are pictures."""
    choices: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Task -> what was asked, what is right and what was chosen, from choices.json."""

    @property
    def label(self) -> str:
        """What the point is called in tables, figures and MLflow."""
        return DENSE if self.variant is None else f"{self.variant}/{self.stage}"

    def score(self, task: str, metric: str) -> Score | None:
        """An entry of scores.json, None when it was not measured."""
        found = self.scores.get((task, metric))
        return found if found and found["value"] is not None else None


@dataclass(frozen=True)
class StepRecord:
    """One step, for the tables of what ran."""

    key: str
    manifest: Manifest
    run: dict[str, Any]


@dataclass(frozen=True)
class Gathered:
    """All of a run."""

    name: str
    stages: list[str]
    variants: list[str]
    held_out: list[str]
    points: list[Point]
    """The dense parent first, then variant by variant in order of the stages."""
    steps: list[StepRecord]
    """Those that the report reads: no steps of rounds, no caches of teachers."""
    stats: dict[str, dict[str, Any]]
    """documents, tokens, chat -> stats.json."""
    proofs: dict[str, dict[str, Any]]
    """Variant -> equivalence.json of its construction."""
    audits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Variant -> audit.json of its construction."""
    differ: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Key -> its value in each variant, where they are not all the same."""

    @property
    def dense(self) -> Point:
        """The parent."""
        return self.points[0]

    def of(self, variant: str) -> list[Point]:
        """A variant's points in order of the stages."""
        return [point for point in self.points if point.variant == variant]

    @property
    def domains(self) -> list[str]:
        """Domains that were evaluated, trained ones first."""
        found = {
            task.removeprefix("text/"): None for task, metric in self.dense.scores if task.startswith("text/")
        }
        names = [name for name in found if name not in ("average", "held-out")]
        return sorted(names, key=lambda name: name in self.held_out)


def gather(settings: Mapping[str, Any], inputs: Mapping[str, Manifest]) -> Gathered:
    """Read a run.

    Args:
        settings: of the report step. inputs: as paths.inputs names them; a stage or evaluation that is missing is left out.
    """
    dense = inputs[DENSE]
    points = [_point(dense, inputs.get("dense/evaluate"), None, DENSE, dense)]
    proofs, audits = {}, {}
    for variant in settings["variants"]:
        for stage in settings["stages"]:
            model = inputs.get(f"{variant}/{stage}")
            if model is not None:
                points.append(_point(model, inputs.get(f"{variant}/evaluate/{stage}"), variant, stage, dense))
                if stage == "construct":
                    proofs[variant] = _json(model.folder / "equivalence.json", {})
                    audits[variant] = _json(model.folder / "audit.json", {})
    steps = [StepRecord(key, item, _json(item.folder / "run.json", {})) for key, item in inputs.items()]
    names = ("documents", "tokens", "chat")
    stats = {
        n: _json(inputs[f"prepare/{n}"].folder / "stats.json", {}) for n in names if f"prepare/{n}" in inputs
    }
    return Gathered(
        settings["name"],
        list(settings["stages"]),
        list(settings["variants"]),
        list(settings["held_out"]),
        points,
        steps,
        stats,
        proofs,
        audits,
        settings["differ"],
    )


def _point(
    model: Manifest, evaluation: Manifest | None, variant: str | None, stage: str, dense: Manifest
) -> Point:
    run = _json(model.folder / "run.json", {})
    share = active_ffn(_json(model.folder / "model" / "config.json", {}), dense.metrics)
    curves = metrics.series(model.folder / "work" / metrics.NAME) if variant else {}
    if evaluation is None:
        return Point(variant, stage, model, run, share, curves=curves)
    scores = _json(evaluation.folder / "scores.json", [])
    return Point(
        variant,
        stage,
        model,
        run,
        share,
        {(item["task"], item["metric"]): item for item in scores},
        _json(evaluation.folder / "run.json", {}).get("measured", {}),
        _routing(evaluation.folder / "routing.parquet"),
        _json(evaluation.folder / "samples.json", []),
        curves,
        _json(evaluation.folder / "depth.json", {}),
        {(item["task"], item["metric"]): item for item in _json(evaluation.folder / "paired.json", [])},
        _json(evaluation.folder / "reliability.json", {}),
        _json(evaluation.folder / "images.json", {}),
        _json(evaluation.folder / "choices.json", {}),
    )


def active_ffn(shape: Mapping[str, Any], dense: Mapping[str, Any]) -> float:
    """Share of the parent's FFN that a token runs through, from the model's config.json.

    Mean over the parent's layers of (shared + experts per token * neurons per expert) / dense FFN width, 1 for a layer left dense. It counts
    what distillation changes too: fewer experts per token, dropped layers; and FFNs that tokens skip, by the share that ran on validation text.
    """
    from moesaic.model.families import FAMILIES  # brings torch

    skips = shape.get("depth", {})
    family = FAMILIES.get(skips.get("model_type", shape["model_type"]))
    width, whole = (shape["intermediate_size"], ()) if family is None else family.running(shape)
    ran = 0.0
    for layer in range(shape["num_hidden_layers"]):
        share = skips.get("share", {}).get(str(layer))
        ran += (shape["intermediate_size"] if layer in whole else width) * (1.0 if share is None else share)
    return float(ran / (dense["layers"] * dense["ffn"]))


def _routing(path: Path) -> dict[str, np.ndarray]:
    """Domain -> load [decoder layers, experts]; NaN for a layer without experts."""
    if not path.exists():
        return {}
    import pyarrow.parquet as pq

    columns = pq.read_table(path, columns=["domain", "layer", "expert", "load"]).to_pydict()
    layers, experts = max(columns["layer"]) + 1, max(columns["expert"]) + 1
    found: dict[str, np.ndarray] = {}
    for domain, layer, expert, load in zip(*columns.values(), strict=True):
        found.setdefault(domain, np.full((layers, experts), np.nan))[layer, expert] = load
    return found


def _json(path: Path, missing: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else missing
