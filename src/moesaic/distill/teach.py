"""Step `teacher`: the teacher's likeliest tokens at every target position of the data, once, for stages that then train without the teacher.

Shards that are there are not made again: a killed step goes on where it stopped, and several ranks share the shards. Every shard is a function of
the settings and its rows alone, so it does not matter who makes it.

Shapes: N target positions, V vocabulary, K likeliest tokens, S tokens drawn from the others.
"""

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moesaic import config
from moesaic.data.sampler import Sample
from moesaic.distill import cache, teachers
from moesaic.distill.losses import base
from moesaic.errors import InputError, Interrupted
from moesaic.flow import files, manifest, signals
from moesaic.flow.progress import Progress
from moesaic.flow.step import Context, Result
from moesaic.train import stage
from moesaic.train.objectives import IGNORE, Batch
from moesaic.train.streams import Row, Stream, collate

log = logging.getLogger("moesaic.teacher")

CHUNK = 256
MEASURED = 2
"""Validation rows per domain on which the truncation is measured."""
WAIT = 0.5


def run(context: Context) -> Result | None:
    """Make the shards that are missing, measure what the truncation costs.

    Raises:
        Interrupted: asked to stop; finished shards stay. InputError: `top` and `tail` that the vocabulary does not have.
    """
    settings = context.settings
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    model = stage.load_stage_model(context.inputs["model"])
    vocabulary = model.config.vocab_size
    if settings["top"] + settings["tail"] >= vocabulary:
        raise InputError(
            f"offline.top: {settings['top']} and tail {settings['tail']} of a vocabulary of {vocabulary}; keep fewer, or train with the resident teacher"
        )
    streams = dict(zip(cache.SPLITS, stage.streams(context, model, settings), strict=True))
    teacher = teachers.Teacher(
        model, settings.get("teacher_experts", "top-k"), settings.get("teacher_scale", "mean")
    )
    teacher.to(device).requires_grad_(False)
    folder = context.out / cache.FOLDER
    _claim(context, folder, rank)
    plan = _plan(settings, streams)
    missing = [item for i, item in enumerate(plan) if i % world == rank and not (folder / item[0]).exists()]
    if len(missing) < len(plan) and rank == 0:
        log.info("%s: %d of %d shards are there already", context.name, len(plan) - len(missing), len(plan))
    progress = Progress(context.name, sum(len(rows) for *_, rows in missing), "rows")
    signals.install()
    columns = cache.schema(vocabulary, settings["precision"])
    for name, split, domain, numbers in missing:
        made = []
        for begin in range(0, len(numbers), settings["batch"]):
            if signals.stop_requested():
                raise Interrupted(f"{context.name}: stopped; finished shards are kept, run again to go on")
            part = numbers[begin : begin + settings["batch"]]
            rows = streams[split].rows([Sample(domain, row) for row in part])
            temperature = settings["temperature"] if split == "train" else 1.0
            said = say(teacher, rows, settings, temperature, _seed(settings, split, domain, part[0]), device)
            digests = (cache.row_digest(row.ids, row.targets) for row in rows)
            made += list(zip(part, digests, said, strict=True))
            progress.update(len(part), f"{split} {domain}")
        cache.write(folder / name, columns, made)
    if rank != 0:
        return None
    while not all((folder / item[0]).exists() for item in plan):  # the other ranks' shards
        if signals.stop_requested():
            raise Interrupted(f"{context.name}: stopped; finished shards are kept, run again to go on")
        time.sleep(WAIT)
    return _result(context, plan, folder, teacher, streams["validation"], vocabulary, device)


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
    half = batch.ids_BT.is_cuda and torch.cuda.is_bf16_supported()
    # as in training, where the engine does it
    with torch.no_grad(), torch.autocast(batch.ids_BT.device.type, torch.bfloat16, enabled=half):
        full = teacher.taught(dataclasses.replace(batch, seed=seed), where_BT)
    return teachers.Full(full.hidden_ND.to(full.head_VD.dtype), full.head_VD)


def _seed(settings: Mapping[str, Any], split: str, domain: str, row: int) -> int:
    return int(config.digest([settings["seed"], split, domain, row])[:12], 16)


def _plan(
    settings: Mapping[str, Any], streams: Mapping[str, Stream]
) -> list[tuple[str, str, str, list[int]]]:
    """(file, split, domain, rows) of every shard."""
    found = []
    for split, stream in streams.items():
        for index, (domain, size) in enumerate(sorted(stream.sizes.items())):
            count = min(size, settings["max_rows"] or size)
            for shard, first in enumerate(range(0, count, settings["shard_rows"])):
                rows = list(range(first, min(first + settings["shard_rows"], count)))
                found.append((cache.shard_name(split, index, shard), split, domain, rows))
    return found


def _claim(context: Context, folder: Path, rank: int) -> None:
    """Shards of other settings or inputs are removed by rank 0; the others wait until it has looked."""
    inputs = {name: files.sha256(item.folder / manifest.NAME) for name, item in context.inputs.items()}
    identity = config.digest({"settings": context.settings, "inputs": inputs})
    path = context.work / "identity.json"

    def current() -> bool:
        return path.exists() and json.loads(path.read_text(encoding="utf-8"))["identity"] == identity

    if rank == 0 and not current():
        if folder.exists():
            log.warning(
                "%s: settings or inputs changed since these shards were made; starting anew", context.name
            )
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        files.write_json(path, {"identity": identity})
    while not current():
        if signals.stop_requested():
            raise Interrupted(f"{context.name}: stopped")
        time.sleep(WAIT)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)


def _result(
    context: Context,
    plan: list[tuple[str, str, str, list[int]]],
    folder: Path,
    teacher: teachers.Teacher,
    validation: Stream,
    vocabulary: int,
    device: torch.device,
) -> Result:
    settings = context.settings
    wanted = {item[0] for item in plan}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    rows: dict[str, dict[str, int]] = {split: {} for split in cache.SPLITS}
    for _, split, domain, numbers in plan:
        rows[split][domain] = rows[split].get(domain, 0) + len(numbers)
    tokens, size = _count(folder, [item[0] for item in plan])
    found: dict[str, Any] = {
        "vocab_size": vocabulary,
        "rows": rows,
        "tokens": tokens,
        "bytes_per_token": cache.bytes_per_token(
            vocabulary, settings["top"], settings["tail"], settings["precision"]
        ),
        "stored_bytes_per_token": round(size / max(1, tokens), 2),
        "truncation": measure(teacher, validation, settings, device),
    }
    log.info(
        "%s: %s tokens, %.0f bytes each on disk; KL of a student without its middle layer: %.4f nats, from the cache %.4f (%+.2f %%)",
        context.name,
        f"{tokens:,}",
        found["stored_bytes_per_token"],
        found["truncation"]["kl"],
        found["truncation"]["kl_cached"],
        100 * found["truncation"]["relative_error"],
    )
    return Result([cache.FOLDER], found)


def _count(folder: Path, names: list[str]) -> tuple[int, int]:
    """Target positions and bytes of the shards."""
    import pyarrow.parquet as pq

    tokens = size = 0
    for name in names:
        size += (folder / name).stat().st_size
        table = pq.read_table(folder / name, columns=["rest"])
        tokens += sum(len(chunk.values) for chunk in table["rest"].chunks)
    return tokens, size


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
            seed = _seed(settings, "validation", domain, row)
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
    error = (cached - exact) / exact
    return {
        "kl": round(exact, 6),
        "kl_cached": round(cached, 6),
        "relative_error": round(error, 6),
        "loss_error": round((cached - exact) / (exact + nll), 6),
        "rest": round(rest, 6),
        "tokens": count,
    }
