"""Losses on the validation rows while a stage is trained, and what a mixture is told of them."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moesaic.data.mixtures import Observation
from moesaic.data.sampler import Sample
from moesaic.errors import InputError
from moesaic.flow import manifest
from moesaic.generate import decode
from moesaic.model import load
from moesaic.model.depth.skip import LayerSkip
from moesaic.train import balance
from moesaic.train.engine import Engine
from moesaic.train.job import Job
from moesaic.train.objectives import TELEMETRY, Trainee, Weights
from moesaic.train.sums import MODALITIES, ROW, modality_means, row_means

log = logging.getLogger("moesaic.train")


def validate(job: Job, engine: Engine, other: Trainee | None = None) -> dict[str, float]:
    """Next-token loss per domain on the first validation rows, `valid/loss/{domain}`, nats per target, `valid/balance/{domain}`, and the CV of the experts'
    load `valid/load_cv/{domain}`, mean over the layers.

    With pictures also `valid/modality/{image, text}` over all domains. Beside a teacher also `valid/forward_kl/{domain}`, `valid/reverse_kl/{domain}` and the student's `valid/entropy/{domain}`, nats per target.

    Args:
        other: measured instead of the model that is trained.
    """
    settings, out = job.settings, {}
    ran_L2: Tensor | None = None
    modality = torch.zeros(2 * len(MODALITIES), dtype=torch.float64)
    with engine.evaluating() as own:
        trainee = other or own
        for name, size in sorted(job.validation.sizes.items()):
            total = min(size, settings["validation_batches"] * settings["micro_batch"])
            # batches are made before they are dealt out: the balance loss of a batch depends on which rows are in it
            micro = settings["micro_batch"]
            batches = [range(begin, min(begin + micro, total)) for begin in range(0, total, micro)]
            mine = batches[engine.rank :: engine.world]
            sums = torch.zeros(3 + len(TELEMETRY), dtype=torch.float64)
            load_LE: Tensor | None = None
            beside_teacher = False
            found = dict.fromkeys(trainee.ROWS, torch.zeros(2, dtype=torch.float64))
            # every rank makes as many passes as the others: where weights are cut up, a pass needs all of them
            for turn in range(-(-len(batches) // engine.world)):
                part = mine[turn] if turn < len(mine) else range(0)
                rows = job.validation.rows([Sample(name, row) for row in part or [0]])
                batch = job.collate(rows, [name] * len(rows), max(1, job.count(rows)), 0.0, engine.device)
                _, statistics = trainee(batch)
                if "load_LE" in statistics:
                    seen_LE = statistics["load_LE"].double().cpu() * bool(part)
                    load_LE = seen_LE if load_LE is None else load_LE + seen_LE
                if not part:
                    continue
                targets = statistics["targets_B"].sum()
                if "ran_L2" in statistics:
                    counts = statistics["ran_L2"].double().cpu()
                    ran_L2 = counts if ran_L2 is None else ran_L2 + counts
                uneven = statistics.get("balance", torch.zeros(())) * targets
                if "modality" in statistics:
                    modality += statistics["modality"].double().cpu()
                beside_teacher = TELEMETRY[0] in statistics
                beside = [statistics[key].sum() if beside_teacher else torch.zeros(()) for key in TELEMETRY]
                parts = [statistics["nll_B"].sum(), targets, uneven, *beside]
                sums += torch.stack([value.double().cpu() for value in parts])
                for key in found:
                    values_B = statistics[ROW + key]
                    one = torch.stack([values_B.sum(), values_B.new_tensor(len(values_B))])
                    found[key] = found[key] + one.double().cpu()
            for key, value in row_means(engine, found).items():
                out[f"valid/{key}/{name}"] = value
            nll, count, imbalance, *more = (float(value) for value in engine.sum(sums).tolist())
            out[f"valid/loss/{name}"] = nll / max(1.0, count)
            if beside_teacher:
                for key, value in zip(TELEMETRY, more, strict=True):
                    out[f"valid/{key.removesuffix('_B')}/{name}"] = value / max(1.0, count)
            if load_LE is not None:
                out[f"valid/balance/{name}"] = imbalance / max(1.0, count)
                out[f"valid/load_cv/{name}"] = float(balance.load_cv(engine.sum(load_LE).cpu()).mean())
    out |= modality_means(engine, modality, "valid")
    if other is None and job.trainee.routed:
        out |= _ran(job.trainee.routed, engine, ran_L2)
    return out


def _ran(routed: Mapping[int, LayerSkip], engine: Engine, ran_L2: Tensor | None) -> dict[str, float]:
    """Share of the validation tokens that ran, by skipping layer; the layers remember it, or that nothing was measured."""
    counts = engine.sum(torch.zeros(len(routed), 2, dtype=torch.float64) if ran_L2 is None else ran_L2).cpu()
    if not bool(counts[:, 1].all()):
        for item in routed.values():
            item.share = None
        return {}
    shares = (counts[:, 0] / counts[:, 1]).tolist()
    for item, share in zip(routed.values(), shares, strict=True):
        item.share = share
    out = {f"valid/ran/layer_{index}": share for index, share in zip(routed, shares, strict=True)}
    return out | {"valid/ran": sum(shares) / len(shares)}


def reference(job: Job, engine: Engine) -> dict[str, float]:
    """The dense parent's losses on the validation rows that the mixture will observe."""
    assert job.reference is not None, "the mixture needs the dense parent's losses"
    teacher: Any = job.trainee.teacher
    manifest.verify(job.reference, only=["model"])
    # any other dense teacher is not the parent
    resident = teacher is not None and job.settings.get("teacher") == "dense"
    model: Any = (
        teacher.model
        if resident
        else load.load_model(job.reference.folder / "model", "mixture.reference: dense parent")
    )
    with decode.precision(engine.device):  # as the trainee's own validation
        found = validate(job, engine, Trainee(model.to(engine.device).eval(), Weights()))
    losses = {name: found[f"valid/loss/{name}"] for name in job.validation.sizes}
    log.info(
        "%s: the dense parent's losses, which the mixture compares with: %s",
        job.context.name,
        ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
    )
    return losses


def observation(job: Job, values: Mapping[str, float]) -> Observation:
    """What a mixture is told: losses and weighted imbalance by domain. Args: values: what `validate` gave."""
    weight = job.settings["balance"]
    return Observation(
        {name: values[f"valid/loss/{name}"] for name in job.mixture.weights},
        {name: weight * values.get(f"valid/balance/{name}", 0.0) for name in job.mixture.weights},
    )


def check_rows(job: Job) -> None:
    """Raises InputError where a domain or set has no validation rows for a mixture that observes losses on them."""
    lacking = sorted(set(job.mixture.weights) - set(job.validation.sizes))
    if lacking:
        raise InputError(
            f"mixture.method: {job.settings['mixture']['method']} compares losses on validation rows, and {lacking[0]} has none; "
            "add data, raise the share that is kept for validation, or take another method"
        )
