"""Step `teacher`: the teacher's likeliest tokens at every target position of the data, once, for stages that then train without the teacher.

Shards that are there are not made again: a killed step goes on where it stopped, and several ranks share the shards. Every shard is a function of
the settings and its rows alone, so it does not matter who makes it.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moesaic import config
from moesaic.data.sampler import Sample
from moesaic.data.split import SPLITS
from moesaic.distill import cache, teachers, truncation
from moesaic.errors import InputError, Interrupted
from moesaic.flow import files, manifest, signals
from moesaic.flow.progress import Progress
from moesaic.flow.step import STEPS, Context, Result
from moesaic.train import stage
from moesaic.train.streams import Stream

log = logging.getLogger("moesaic.teacher")

WAIT = 0.5
"""Seconds between two looks for what the other ranks have done."""


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
    streams = dict(zip(SPLITS, stage.streams(context, model, settings), strict=True))
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
            seed = truncation.seed_of(settings, split, domain, part[0])
            said = truncation.say(teacher, rows, settings, temperature, seed, device)
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
    known = {"settings": context.settings, "inputs": inputs, "version": STEPS["teacher"].version}
    identity = config.digest(known)
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
    rows: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
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
        "truncation": truncation.measure(teacher, validation, settings, device),
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
