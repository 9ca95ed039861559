"""What MLflow is told of a step: where it may have run, and the metrics and tags that its files hold."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.config import flatten, variant_config
from moesaic.flow import describe, files, manifest, metrics, paths, shared, store
from moesaic.flow.manifest import Manifest
from moesaic.project import shipped
from moesaic.schema import Config


@dataclass(frozen=True)
class Place:
    """One step of the configuration, where it may have run."""

    key: str
    step: str
    variant: str | None
    stage: str | None
    folder: Path
    settings: dict[str, Any]
    inputs: dict[str, Path]


def places(config: Config, results: Path) -> Iterator[Place]:
    """Every step of a configuration, in the order of the workflow; what variants share stands before the first that reads it."""

    def place(
        step: str, variant: str | None = None, stage: str | None = None, part: paths.Part | None = None
    ) -> Place:
        plan = paths.plan_step(config, step, variant, stage, part)
        inputs = {name: results.joinpath(*path.parts[1:]) for name, path in plan.inputs.items()}
        parts = plan.out.parts[1:]
        if step in ("teacher", "teacher_text") and parts[0] == "dense":
            variant = stage = None
        return Place(
            "/".join(parts) or step, step, variant, stage, results.joinpath(*parts), plan.settings, inputs
        )

    caches, texts = shared.caches(config).values(), shared.texts(config).values()
    yield place("dense")
    yield from map(place, paths.prepared(config))
    shards = [paths.Part(shard=number) for number in paths.evaluation_shards(config)]
    for part in shards:
        yield place("evaluate_part", None, "dense", part)
    yield place("evaluate", None, "dense")
    for variant in config.variants:
        for stage in config.stages:
            if (variant, stage) in caches:
                yield place("teacher", variant, stage)
            if stage == "distill" and variant in texts:
                for shard in range(variant_config(config, variant).distill.samples.shards):
                    yield place("teacher_text", variant, None, paths.Part(shard=shard))
            for step, part in paths.round_steps(config, variant, stage):
                yield place(step, variant, None, part)
            yield place(stage, variant)
            for part in shards:
                yield place("evaluate_part", variant, stage, part)
            yield place("evaluate", variant, stage)
    yield place("report")


def check(config: Config) -> None:
    """Plan every step once. Raises InputError where a file that the settings of one name is missing or not whole: said at once, not when its turn comes."""
    if config.model.chat_template:
        shipped.find("chat_templates", config.model.chat_template, "model.chat_template")
    for _ in places(config, Path("results")):
        pass


def measured(
    place: Place, record: Mapping[str, Any], done: Manifest | None, scores: list[dict[str, Any]]
) -> Iterator[tuple[str, float, int, int]]:
    """(key, value, timestamp, step) of everything that the step's files hold."""
    for item in metrics.read(place.folder / "work" / metrics.NAME):
        yield item["key"], item["value"], item["ts"], item["step"]
    if not done:
        return
    ended = store.ms(record["ended"])
    assert ended is not None
    measured = record["measured"] | {"step_seconds": record["seconds"]}
    values = flatten({"measured": measured, "result": done.metrics}, "/")
    for score in scores:
        name = f"eval/{score['task']}/{score['metric']}"
        values |= {
            name: score["value"],
            f"{name}/ci_low": score["ci_low"],
            f"{name}/ci_high": score["ci_high"],
        }
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, float(value), ended, 0


def scores(place: Place) -> list[dict[str, Any]]:
    """What an evaluation measured; empty for other steps."""
    path = place.folder / "scores.json"
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def tags(
    place: Place, record: Mapping[str, Any], done: Manifest | None, scores: list[dict[str, Any]]
) -> dict[str, Any]:
    """Tags of a step's run."""
    inputs = {f"moesaic.input.{name}": value for name, value in (done.inputs if done else {}).items()}
    return inputs | {
        "moesaic.step": place.step,
        "moesaic.variant": place.variant,
        "moesaic.stage": place.stage or (place.step if place.variant else None),
        "moesaic.folder": place.folder,
        "moesaic.host": record["host"],
        "moesaic.attempts": record["attempts"],
        "moesaic.slurm_job_id": record.get("slurm_job_id"),
        "moesaic.versions": json.dumps(record.get("versions", {}), sort_keys=True),
        "moesaic.command": " ".join(record.get("command", [])),
        "mlflow.note.content": describe.note(place.step, scores),
        "mlflow.source.name": f"moesaic {place.step}",
        "mlflow.source.type": "JOB" if record.get("slurm_job_id") else "LOCAL",
        "mlflow.source.git.commit": record.get("git_commit"),
    }


def state(place: Place, record: Path) -> str:
    """Digest of the files that a run is made from; when it is the one of the last replay, there is nothing to do."""
    found = [record, place.folder / manifest.NAME, place.folder / "work" / metrics.NAME]
    return hashlib.sha256("".join(files.sha256(path) for path in found if path.exists()).encode()).hexdigest()
