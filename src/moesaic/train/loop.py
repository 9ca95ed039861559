"""The one training loop: pretrain, tune and distill differ only in data and loss weights.

A killed run goes on from its last checkpoint: same data order, same random numbers, same weights, bit for bit on a CPU.
"""

import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moesaic import config
from moesaic.data.sampler import Sample, Sampler
from moesaic.errors import InputError, Interrupted
from moesaic.flow import files, manifest, metrics, signals
from moesaic.flow.progress import Progress
from moesaic.flow.step import STEPS, Result
from moesaic.model import size
from moesaic.settings import compared
from moesaic.train import checkpoint, finish, hardware, policy, probe
from moesaic.train.engine import Engine, build
from moesaic.train.job import Job
from moesaic.train.recorder import Recorder
from moesaic.train.schedule import share
from moesaic.train.sums import Sums
from moesaic.train.validation import check_rows, observation, reference, validate

log = logging.getLogger("moesaic.train")


def train(job: Job) -> Result | None:
    """Train to the end, save `model/`. None on ranks other than 0.

    Raises:
        Interrupted: asked to stop; a checkpoint was written. InputError: loss not finite, no room on the disk, batch and ranks do not fit.
    """
    settings, context = job.settings, job.context
    if settings["router"]["gate"] != "linear":
        raise InputError(f"{context.name}.{policy.EXPORT}")  # now, and not after a week
    probe.check(job)
    torch.manual_seed(context.settings["seed"])
    counted = size.count(job.trainee.model)  # before an engine cuts the parameters up
    _check_batch(settings, int(os.environ.get("WORLD_SIZE", "1")))
    engine = build(job.trainee, settings)
    _check_batch(settings, engine.world)
    sampler = Sampler(
        job.mixture, job.train.sizes, context.settings["seed"], settings["mixture"]["max_epochs"]
    )
    folder = context.work / "checkpoints"
    writer = checkpoint.Writer(folder, settings["keep_checkpoints"], settings["keep_every"])
    try:
        return _run(job, engine, sampler, writer, folder, counted)
    except InputError:
        writer.wait()  # on several ranks the process ends at once, and with it a save in the background
        raise


def _run(
    job: Job,
    engine: Engine,
    sampler: Sampler,
    writer: checkpoint.Writer,
    folder: Path,
    counted: size.Size,
) -> Result | None:
    """The loop, from where the checkpoint in the folder is."""
    settings, context = job.settings, job.context
    state = _resume(job, engine, sampler, folder)
    start, seen = (state["step"], state["tokens"]) if state else (0, 0)
    if job.mixture.OBSERVES:
        check_rows(job)  # now, and not at the first update
        if job.mixture.reference is None:
            job.mixture.reference = reference(job, engine)
    recorder = Recorder(context, start if state else None) if engine.main else None
    progress = Progress(context.name, settings["steps"], "steps", start=start)
    signals.install()
    peak = hardware.peak_flops(engine.device)
    flops = counted.flops_per_token(training=True)
    loss = math.nan
    engine.trainee.train()
    began = time.monotonic()
    first_seen, done, limit = seen, start, settings["tokens"]
    for step in range(start, settings["steps"]):
        tick = time.monotonic()
        values, tokens, samples = _step(job, engine, sampler, step, share(seen, limit))
        loss = values["train/loss"]
        if not math.isfinite(loss) or not math.isfinite(values["train/grad_norm"]):
            raise InputError(
                f"{context.name}: the loss is not finite at step {step + 1} (loss {loss}, gradient norm {values['train/grad_norm']}); "
                f"look at the data, or lower {context.name.split('/')[-1]}.optimizer.lr, with which training begins anew; with unchanged settings a rerun goes on from the "
                f"last checkpoint in {folder}, and will meet the same loss where the cause is not the machine"
            )
        seen += tokens
        speed = tokens / (time.monotonic() - tick)
        values |= {
            "train/tokens": seen,
            "train/tokens_per_second": speed,
            "memory/rss_gb": hardware.resident_gb(),
        }
        if engine.device.type == "cuda":
            values["memory/gpu_gb"] = hardware.memory_gb()
        if peak:
            values["train/mfu"] = flops * speed / (peak * engine.world)
        done = step + 1
        if job.watch:
            job.watch.check(values)
        last = done == settings["steps"] or (limit is not None and seen >= limit)
        last = last or (job.watch is not None and job.watch.enough(done, values))
        due = job.mixture.every > 0 and done % job.mixture.every == 0 and not last
        update = job.mixture.OBSERVES and due
        if update or last or (settings["validate_every"] and done % settings["validate_every"] == 0):
            values |= validate(job, engine)
        if update:
            job.mixture.observe(observation(job, values))
            job.mixture.load_state(engine.share(job.mixture.state()))  # as in probe.update
        if due and job.mixture.PROBES:
            values |= probe.update(job, engine, done)
        if recorder:
            recorder.log(done, values | engine.clock.take(), samples)
        progress.update(detail=f"loss {loss:.3f}, {speed:.0f} tokens/s")
        stop = engine.any(signals.stop_requested()) and not last
        if stop or (done % settings["save_every"] == 0 and not last):
            _save(job, engine, sampler, writer, done, seen)
        if stop:
            writer.wait()  # the other ranks have nothing to wait for
            raise Interrupted(
                f"{context.name}: stopped after step {done} of {settings['steps']}, checkpoint written; run again to go on"
            )
        if last:
            break
    speed = (seen - first_seen) / max(1e-9, time.monotonic() - began)
    weights = engine.weights()  # all ranks have a part in it
    if engine.main and job.trainee.policy is not None:
        job.trainee.policy.fold(job.trainee.model, weights)
    result = (
        finish.save(job, engine, sampler, weights, counted, loss, done, seen, speed) if engine.main else None
    )
    # No barrier here: the other ranks have nothing left to wait for, and a rank that waits can hang.
    if engine.main:
        writer.wait()
        assert result is not None
        result.cleanup = functools.partial(checkpoint.clear, folder)
    if recorder:
        recorder.close()
    return result


def _step(
    job: Job, engine: Engine, sampler: Sampler, step: int, behind: float | None
) -> tuple[dict[str, float], int, list[Sample]]:
    """One optimizer step; returns the values to log, the number of tokens of all ranks, and the samples. Args: behind: schedule.share."""
    settings = job.settings
    # attention dropout, where the parent has it: a checkpoint holds rank 0's state alone
    torch.manual_seed((job.context.settings["seed"] << 32) + step * engine.world + engine.rank)
    if job.trainee.depth is not None:
        job.trainee.depth.begin_step(step)
    with engine.clock.phase("data"):
        samples = sampler.next(settings["batch"])
        rows = job.train.rows(samples)
    targets = job.count(rows)
    each = settings["batch"] // engine.world
    mine = range(engine.rank * each, (engine.rank + 1) * each)
    names = sorted(job.train.sizes)
    policy = job.trainee.policy
    sums = Sums(names, [part.layer for part in policy.parts] if policy is not None else [])
    micro = settings["micro_batch"]
    for begin in range(mine.start, mine.stop, micro):
        part = rows[begin : begin + micro]
        domains = [sample.domain for sample in samples[begin : begin + micro]]
        batch = job.collate(part, domains, targets, len(part) / settings["batch"], engine.device)
        # the same noise for the same rows, on any number of ranks
        noise = (job.context.settings["seed"] << 32) + step * settings["batch"] + begin
        batch = dataclasses.replace(
            batch, seed=noise, progress=step / settings["steps"] if behind is None else behind
        )
        loss, statistics = engine.forward_backward(batch, last=begin + micro >= mine.stop)
        sums.add(loss, statistics, domains, len(part) / settings["batch"])
    norm, rate = engine.step(step, behind)
    values, load_LE = sums.reduced(engine)
    if load_LE is not None and job.trainee.policy is not None:
        job.trainee.policy.after_step(load_LE)
    depth_sums = sums.reduced_depth(engine)
    if depth_sums is not None and job.trainee.depth is not None:
        values |= depth_sums[0] | job.trainee.depth.values(depth_sums[1])
        job.trainee.depth.after_step(depth_sums[1], step)
    values |= {"train/grad_norm": norm, "train/lr": rate}
    values |= {f"mixture/weight/{name}": weight for name, weight in job.mixture.weights.items()}
    values |= {f"mixture/drawn/{name}": float(count) for name, count in sampler.drawn.items()}
    values |= {f"mixture/epochs/{name}": value for name, value in sampler.epochs().items()}
    return values, sum(len(row.ids) for row in rows), samples


def _identity(job: Job) -> str:
    """Digest of everything that the result depends on: a checkpoint of another identity is not ours to go on from."""
    inputs = {name: files.sha256(item.folder / manifest.NAME) for name, item in job.context.inputs.items()}
    own = dict(job.settings)
    if isinstance(own.get("pairs"), Mapping):  # its alarm stops a run, and says how to go on
        own["pairs"] = {key: value for key, value in own["pairs"].items() if not key.startswith("alarm_")}
    step = job.context.name.split("/")[-1]
    settings = job.context.settings | {step: own}
    known = {"settings": compared(settings), "inputs": inputs, "version": STEPS[step].version}
    return config.digest(known)


def _resume(job: Job, engine: Engine, sampler: Sampler, folder: Path) -> dict[str, Any] | None:
    if engine.main:
        checkpoint.remove_leftovers(folder)
        records = [job.context.work / name for name in (metrics.NAME, metrics.SAMPLES)]
        other = checkpoint.choose(folder, _identity(job), records)
        if other is not None:
            log.warning(
                "%s: settings or inputs changed since the checkpoint at step %d, which is set aside in %s and comes back with them",
                job.context.name,
                other,
                folder.parent,
            )
    engine.barrier()
    newest = checkpoint.latest(folder)
    engine.barrier()
    if newest is None:
        return None
    state = checkpoint.load_state(newest)
    engine.load_weights(checkpoint.load_tensors(newest, "weights"))
    engine.load_optimizer_state(checkpoint.load_tensors(newest, "optimizer"))
    checkpoint.set_rng_state(checkpoint.load_tensors(newest, "rng"))
    sampler.load_state(state["sampler"])
    job.mixture.load_state(state["mixture"])
    if job.watch:
        job.watch.load_state(state["watch"])
    log.info("%s: going on from step %d", job.context.name, state["step"])
    return state


def _save(
    job: Job, engine: Engine, sampler: Sampler, writer: checkpoint.Writer, step: int, seen: int
) -> None:
    with engine.clock.phase("checkpoint"):
        _snapshot(job, engine, sampler, writer, step, seen)


def _snapshot(
    job: Job, engine: Engine, sampler: Sampler, writer: checkpoint.Writer, step: int, seen: int
) -> None:
    weights, optimizer = engine.weights(), engine.optimizer_state()  # all ranks have a part in them
    if engine.main:
        state = {
            "step": step,
            "tokens": seen,
            "identity": _identity(job),
            "sampler": sampler.state(),
            "mixture": job.mixture.state(),
            "watch": job.watch.state() if job.watch else None,
        }
        tensors = {
            "weights": weights,
            "optimizer": optimizer,
            "rng": checkpoint.rng_state(),
        }
        writer.save(step, tensors, state)


def _check_batch(settings: Mapping[str, Any], world: int) -> None:
    if settings["batch"] % (world * settings["micro_batch"]):
        raise InputError(
            f"batch: {settings['batch']} sequences do not divide by {world} ranks times micro_batch {settings['micro_batch']}"
        )
