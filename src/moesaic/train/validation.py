"""Losses on the validation rows while a stage is trained, and what a mixture is told of them."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from moesaic.data.mixtures import Observation
from moesaic.data.sampler import Sample
from moesaic.flow import manifest
from moesaic.model import families, load
from moesaic.train.engine import Engine
from moesaic.train.job import Job
from moesaic.train.objectives import TELEMETRY, Trainee, Weights
from moesaic.train.streams import collate, count_targets

log = logging.getLogger("moesaic.train")


def validate(job: Job, engine: Engine, other: Trainee | None = None) -> dict[str, float]:
    """Next-token loss per domain on the first validation rows, `valid/loss/{domain}`, nats per target, and `valid/balance/{domain}`.

    Beside a teacher also `valid/forward_kl/{domain}`, `valid/reverse_kl/{domain}` and the student's `valid/entropy/{domain}`, nats per target.

    Args:
        other: measured instead of the model that is trained.
    """
    settings, out = job.settings, {}
    with engine.evaluating() as own:
        trainee = other or own
        for name, count in sorted(job.validation.sizes.items()):
            total = min(count, settings["validation_batches"] * settings["micro_batch"])
            chosen = list(range(engine.rank, total, engine.world))
            sums = torch.zeros(3 + len(TELEMETRY), dtype=torch.float64)
            beside_teacher = False
            # every rank makes as many passes as the others: where weights are cut up, a pass needs all of them
            for begin in range(0, -(-total // engine.world), settings["micro_batch"]):
                part = chosen[begin : begin + settings["micro_batch"]]
                rows = job.validation.rows([Sample(name, row) for row in part or [0]])
                batch = collate(rows, [name] * len(rows), max(1, count_targets(rows)), 0.0, engine.device)
                _, statistics = trainee(batch)
                if not part:
                    continue
                targets = statistics["targets_B"].sum()
                uneven = statistics.get("balance", torch.zeros(())) * targets
                beside_teacher = TELEMETRY[0] in statistics
                told = [statistics[key].sum() if beside_teacher else torch.zeros(()) for key in TELEMETRY]
                parts = [statistics["nll_B"].sum(), targets, uneven, *told]
                sums += torch.stack([value.double().cpu() for value in parts])
            nll, targets, uneven, *more = (float(value) for value in engine.sum(sums).tolist())
            out[f"valid/loss/{name}"] = nll / max(1.0, targets)
            if beside_teacher:
                for key, value in zip(TELEMETRY, more, strict=True):
                    out[f"valid/{key.removesuffix('_B')}/{name}"] = value / max(1.0, targets)
            if trainee.moe:
                out[f"valid/balance/{name}"] = uneven / max(1.0, targets)
    return out


def reference(job: Job, engine: Engine) -> dict[str, float]:
    """The dense parent's losses on the validation rows that the mixture will observe."""
    assert job.reference is not None, "the mixture needs the dense parent's losses"
    teacher: Any = job.trainee.teacher
    manifest.verify(job.reference, only=["model"])
    resident = teacher is not None and not families.is_moe(teacher.model)
    model: Any = (
        teacher.model
        if resident
        else load.load_model(job.reference.folder / "model", "mixture.reference: dense parent")
    )
    found = validate(job, engine, Trainee(model.to(engine.device).eval(), Weights()))
    losses = {name: found[f"valid/loss/{name}"] for name in job.validation.sizes}
    log.info(
        "%s: the dense parent's losses, which the mixture compares with: %s",
        job.context.name,
        ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
    )
    return losses


def observation(job: Job, values: Mapping[str, float]) -> Observation:
    weight = job.settings["balance"]
    return Observation(
        {name: values[f"valid/loss/{name}"] for name in job.mixture.weights},
        {name: weight * values.get(f"valid/balance/{name}", 0.0) for name in job.mixture.weights},
    )
