"""Step `evaluate`: one model, the same data and code at every stage, every figure with a 95 % interval."""

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moesaic.data import packed
from moesaic.errors import InputError
from moesaic.evaluate import bootstrap, generate, harness, likelihood, routing
from moesaic.evaluate.bootstrap import Interval
from moesaic.flow import files, manifest
from moesaic.flow.step import Context, Result
from moesaic.model import load, size
from moesaic.train.hardware import memory_gb
from moesaic.train.streams import check_vocabulary


def run(context: Context) -> Result:
    """Write scores.json, items.parquet, samples.json and, for an MoE, routing.parquet."""
    settings, seed, held_out = (
        context.settings["evaluate"],
        context.settings["seed"],
        context.settings["held_out"],
    )
    resamples = settings["bootstrap"]
    step, tokens, tasks = (context.inputs[name] for name in ("model", "tokens", "tasks"))
    manifest.verify(step, only=["model"])
    model = load.load_model(step.folder / "model", f"model of {step.folder}")
    tokenizer = load.load_tokenizer(step.folder / "model")
    check_vocabulary(tokens, model, str(step.folder))
    scores: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}

    began = time.perf_counter()
    texts = _texts(model, tokens, settings)
    for name, text in texts.items():
        nats, counts = np.asarray(text.nats), np.asarray(text.tokens)
        scores.append(
            _score(
                f"text/{name}",
                "bits_per_byte",
                bootstrap.ratio(likelihood.bits(text), np.asarray(text.bytes), resamples, seed),
            )
        )
        loss = bootstrap.ratio(nats, counts, resamples, seed)
        scores.append(
            _score(
                f"text/{name}",
                "perplexity",
                Interval(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high), loss.n),
            )
        )
        items += [
            {"task": f"text/{name}", "item": i, "metric": "bits_per_byte", "value": bits / count}
            for i, (bits, count) in enumerate(zip(likelihood.bits(text), text.bytes, strict=True))
        ]
    groups = {
        "text/average": [n for n in texts if n not in held_out],
        "text/held-out": [n for n in texts if n in held_out],
    }
    for task, names in groups.items():
        if names:
            pairs = [(likelihood.bits(texts[n]), np.asarray(texts[n].bytes)) for n in names]
            scores.append(_score(task, "bits_per_byte", bootstrap.macro(pairs, resamples, seed)))
    speed = sum(sum(t.tokens) for t in texts.values()) / sum(t.seconds for t in texts.values())
    by_domain = {name: text.routing for name, text in texts.items() if text.routing is not None}
    if by_domain:
        cv = routing.total(list(by_domain.values())).cv()
        scores.append(
            _score("routing/load_cv", "load_cv", Interval(cv, float("nan"), float("nan"), len(by_domain)))
        )
    seconds["text"] = time.perf_counter() - began

    began = time.perf_counter()
    found = harness.evaluate(model, tokenizer, settings, tasks.folder, context.work / "datasets", seed)
    scores += _task_scores(found, resamples, seed)
    items += [
        {"task": name, "item": i, "metric": metric, "value": float(value)}
        for name, task in found.items() for metric, values in task.items.items() for i, value in enumerate(values)
    ]  # fmt: skip
    seconds["tasks"] = time.perf_counter() - began

    began = time.perf_counter()
    written, generation = generate.samples(model, tokenizer)
    seconds["generation"] = time.perf_counter() - began
    files.write_json(context.out / "scores.json", scores)
    files.write_json(context.out / "samples.json", written)
    outputs = ["scores.json", "samples.json", "items.parquet"]
    with files.atomic_path(context.out / "items.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(items), temporary, compression="zstd")
    if by_domain:
        with files.atomic_path(context.out / "routing.parquet") as temporary:
            pq.write_table(routing.table(by_domain), temporary, compression="zstd")
        outputs.append("routing.parquet")
    else:
        (context.out / "routing.parquet").unlink(missing_ok=True)
    counted = size.count(model)
    headline = {
        f"{s['task']}/{s['metric']}": s["value"]
        for s in scores
        if s["task"] in ("text/average", "text/held-out", "mc/average", "routing/load_cv")
    }
    measured = {
        "tokens_per_second": speed, "generation_tokens_per_second": generation, "memory_gb": memory_gb(),
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
    }  # fmt: skip
    return Result(
        outputs, headline | {"parameters": counted.total, "active_parameters": counted.active}, measured
    )


def _texts(model: Any, tokens: manifest.Manifest, settings: Mapping[str, Any]) -> dict[str, likelihood.Text]:
    names = packed.domains(tokens)
    manifest.verify(tokens, only=[f"{name}.validation" for name in names])
    found = {}
    for name in names:
        blocks = packed.open_blocks(tokens, name, "validation")
        if len(blocks) == 0:
            raise InputError(f"data.domains.{name}: no validation block")
        found[name] = likelihood.measure(model, blocks, settings["blocks"], settings["batch"], name)
    return found


def _task_scores(found: Mapping[str, harness.Task], resamples: int, seed: int) -> list[dict[str, Any]]:
    scores = []
    for name, task in found.items():
        for metric, values in task.items.items():
            scores.append(_score(name, metric, bootstrap.mean(values, resamples, seed), task.chance))
        for metric, (value, error) in task.overall.items():
            half = 1.96 * error if error is not None else float("nan")
            scores.append(_score(name, metric, Interval(value, value - half, value + half, 0)))
    choice = {name: task for name, task in found.items() if task.chance is not None}
    if choice:
        # Length-normalised accuracy, as published for OpenBookQA, HellaSwag, ARC and PIQA: sums of log-likelihoods favour short answers.
        normed = [task.items.get("acc_norm", task.items["acc"]) for task in choice.values()]
        pairs = [(value, np.ones(len(value))) for value in normed]
        chance = float(np.mean([task.chance for task in choice.values() if task.chance is not None]))
        scores.append(_score("mc/average", "acc_norm", bootstrap.macro(pairs, resamples, seed), chance))
    return scores


def _score(task: str, metric: str, interval: Interval, chance: float | None = None) -> dict[str, Any]:
    """One entry of scores.json; rounded so that equal runs give equal bytes, null where there is no interval."""

    def rounded(value: float | None) -> float | None:
        return None if value is None or np.isnan(value) else round(float(value), 6)

    return {
        "task": task, "metric": metric, "value": rounded(interval.value), "ci_low": rounded(interval.low), "ci_high": rounded(interval.high),
        "n": interval.n, "chance": rounded(chance),
    }  # fmt: skip
