"""What the cache of an offline teacher keeps of its probabilities: the likeliest tokens and draws from the others; and what leaving out the rest costs.

Shapes: N target positions, V vocabulary, K likeliest tokens, S tokens drawn from the others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moesaic import config
from moesaic.data.sampler import Sample
from moesaic.distill import cache, teachers
from moesaic.distill.losses import base
from moesaic.generate import decode
from moesaic.train.objectives import IGNORE, Batch
from moesaic.train.streams import Row, Stream, collate

CHUNK = 256
MEASURED = 2
"""Validation rows per domain on which the truncation is measured."""


def say(
    teacher: teachers.Teacher,
    rows: list[Row],
    settings: Mapping[str, Any],
    temperature: float,
    seed: int,
    device: torch.device,
) -> list[cache.CachedRow]:
    """What the teacher says of some rows. Args: seed: of the tail's draws and of a teacher that draws its experts."""
    batch = collate(rows, [""] * len(rows), 1, 0.0, device)
    where_BT = batch.targets_BT != IGNORE
    full = _taught(teacher, batch, where_BT, seed)
    return _cut(full, batch, where_BT, settings, temperature, seed)


def _cut(
    full: teachers.Full,
    batch: Batch,
    where_BT: Tensor,
    settings: Mapping[str, Any],
    temperature: float,
    seed: int,
) -> list[cache.CachedRow]:
    """What the cache keeps of all that the teacher says."""
    stream = torch.Generator(device=where_BT.device).manual_seed(seed)
    targets_N = batch.targets_BT[where_BT]
    parts = []
    for start in range(0, len(targets_N), CHUNK):
        chunk = slice(start, start + CHUNK)
        logits_NV = functional.linear(full.hidden_ND[chunk], full.head_VD).float()
        target_N = -functional.cross_entropy(logits_NV, targets_N[chunk], reduction="none")
        kept = truncate(
            functional.log_softmax(logits_NV / temperature, dim=1), settings["top"], settings["tail"], stream
        )
        parts.append([*kept, target_N])
    joined = [torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True)]
    ends = np.cumsum(where_BT.sum(dim=1).cpu().numpy())[:-1]
    split = (np.split(values, ends) for values in joined)
    return [
        cache.CachedRow(ids, log_p, rest, target, settings["tail"], temperature)
        for ids, log_p, rest, target in zip(*split, strict=True)
    ]


def truncate(
    log_p_NV: Tensor, top: int, tail: int, stream: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and log-probabilities [N, K + S] of the likeliest tokens and of draws from the others, and the log mass of the others [N]."""
    log_p_NK, ids_NK = log_p_NV.topk(top, dim=1)
    others_NV = log_p_NV.scatter(1, ids_NK, -torch.inf)
    rest_N = others_NV.logsumexp(dim=1).clamp_min(cache.LOG_NOTHING)
    if tail:
        # relative to the likeliest of them, so that a rest of mass 1e-20 is still drawn from in proportion
        weight_NV = (others_NV - others_NV.amax(dim=1, keepdim=True)).exp()
        drawn_NS = torch.multinomial(weight_NV, tail, replacement=True, generator=stream)
        ids_NK = torch.cat([ids_NK, drawn_NS], dim=1)
        log_p_NK = log_p_NV.gather(1, ids_NK)
    return ids_NK, log_p_NK.clamp_min(2 * cache.LOG_NOTHING), rest_N


def _taught(teacher: teachers.Teacher, batch: Batch, where_BT: Tensor, seed: int) -> teachers.Full:
    with torch.no_grad(), decode.precision(batch.ids_BT.device):
        full = teacher.taught(dataclasses.replace(batch, seed=seed), where_BT)
    return teachers.Full(full.hidden_ND.to(full.head_VD.dtype), full.head_VD)


def seed_of(settings: Mapping[str, Any], split: str, domain: str, row: int) -> int:
    """Seed of the draws for the rows that begin with this one, whoever makes them."""
    return int(config.digest([settings["seed"], split, domain, row])[:12], 16)


@torch.no_grad()
def measure(
    teacher: teachers.Teacher, validation: Stream, settings: Mapping[str, Any], device: torch.device
) -> dict[str, float]:
    """What the truncation does to forward KL, on some validation rows, for a student that no one had to train: the teacher without its middle layer.

    Returns:
        kl, kl_cached: nats per token from all probabilities and from what the cache keeps; relative_error; loss_error: relative, of a loss that is half
        KL and half cross entropy; rest: mean mass beyond the K likeliest tokens; tokens.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    count = 0
    for domain, size in sorted(validation.sizes.items()):
        for row in range(min(MEASURED, size)):
            rows = validation.rows([Sample(domain, row)])
            seed = seed_of(settings, "validation", domain, row)
            batch = collate(rows, [domain], 1, 0.0, device)
            where_BT = batch.targets_BT != IGNORE
            full = _taught(teacher, batch, where_BT, seed)
            said = _cut(full, batch, where_BT, settings, 1.0, seed)[0]
            half = {key: getattr(said, key).astype(settings["precision"]) for key in ("log_p", "rest")}
            kept = cache.join([said._replace(**half)], device)
            with teachers.without_layer(teacher.model, teacher.model.config.num_hidden_layers // 2):
                student = _taught(teacher, batch, where_BT, seed)
            targets_N = batch.targets_BT[where_BT]
            for start in range(0, len(targets_N), CHUNK):
                chunk = slice(start, start + CHUNK)
                logits_NV = functional.linear(student.hidden_ND[chunk], student.head_VD).float()
                kls = [
                    base.kl(seen.log_p_NC, seen.log_q_NC, seen.weight_NS).sum()
                    for seen in (taught.compare(logits_NV, chunk, 1.0) for taught in (full, kept))
                ]
                nll = functional.cross_entropy(logits_NV, targets_N[chunk], reduction="sum")
                sums += torch.stack([*kls, nll, kept.log_rest_N[chunk].exp().sum()]).double().cpu()
            count += len(targets_N)
    exact, cached, nll, rest = (value / max(1, count) for value in sums.tolist())
    error = (cached - exact) / exact if exact else 0.0  # a middle layer that adds nothing
    return {
        "kl": round(exact, 6),
        "kl_cached": round(cached, 6),
        "relative_error": round(error, 6),
        "loss_error": round((cached - exact) / max(exact + nll, 1e-12), 6),
        "rest": round(rest, 6),
        "tokens": count,
    }
