"""Step `evaluate`: one model on validation text, multiple-choice tasks and routing; every number with its interval."""

import logging
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from moesaic.data import packed
from moesaic.data.images import vocabulary
from moesaic.evaluate import bootstrap, compare, harness, instructions, likelihood, routing, samples, shards
from moesaic.evaluate.images import suite as images
from moesaic.evaluate.reliability import moe
from moesaic.evaluate.reliability import suite as reliability
from moesaic.evaluate.science import suite as science
from moesaic.evaluate.temporal import suite as temporal
from moesaic.flow import files
from moesaic.flow.step import Context, Result
from moesaic.generate import sample
from moesaic.model import depth, size

log = logging.getLogger("moesaic.evaluate")

PLACES = 6
"""Digits kept after the point."""


def run(context: Context) -> Result:
    """Write scores.json, items.parquet, samples.json; for an MoE routing.parquet; with a parent paired.json, with their data reliability.json and images.json.

    Text and tasks are scored with the words of text alone, so that image tokens change nothing where there is no picture.
    """
    settings, seed = context.settings["evaluate"], context.settings["seed"]
    held_out = set(context.settings["held_out"])
    clock: dict[str, float] = {}
    with _timed(clock, "load"):
        model, tokenizer = shards.loaded(context)
        counted = size.count(model)
    tokens = context.inputs["tokens"]
    blocks = {name: packed.open_blocks(tokens, name, "validation") for name in packed.domains(tokens)}
    with vocabulary.text_only(model, vocabulary.of(tokenizer)):
        with _timed(clock, "likelihood"):
            losses = likelihood.measure(
                model, blocks, settings["blocks"], settings["batch"], f"{context.name}: likelihood"
            )
        (context.out / instructions.ANSWERS).unlink(missing_ok=True)
        tasks = _tasks(context, model, tokenizer, clock)
        shifted: moe.Measured | None = None
        report: dict[str, Any] = {}
        if "reliability" in settings["suites"]:
            source = context.inputs["reliability"]
            with _timed(clock, "reliability"):
                found = reliability.run(
                    model,
                    tokenizer,
                    settings,
                    source,
                    context.work,
                    seed,
                    shards.identity(context, "reliability"),
                )
                tasks += found.tasks
                texts = reliability.texts(source)
                shifted = moe.run(model, tokenizer, texts, settings["batch"], settings["bootstrap"], seed)
                report = found.report | shifted.details
        with _timed(clock, "samples"):
            continuations, made, generating = samples.generate(model, tokenizer)
    pictured: dict[str, Any] = {}
    if "images" in context.inputs:
        with _timed(clock, "pictures"):
            both = (context.inputs["images"], context.inputs["chat"])
            measured_images, pictured = images.run(model, tokenizer, settings, *both, seed, context.name)
    with _timed(clock, "intervals"):
        scores = text_scores(losses, held_out, settings["bootstrap"], seed)
        scores += task_scores(tasks, settings["bootstrap"], seed)
        usage = {name: loss.usage for name, loss in losses.items() if loss.usage is not None}
        if usage:
            for metric, estimate in _routing(usage, held_out, settings["bootstrap"], seed):
                scores.append(score(f"routing/{metric}", metric, estimate))
        ran = {name: loss.ran_NL for name, loss in losses.items() if loss.ran_NL is not None}
        if ran:
            estimate = depth_ran(ran, held_out, settings["bootstrap"], seed)
            scores.append(score("depth/ran", "share", estimate))
        if pictured:
            scores += [score("images", *item) for item in measured_images]
    if shifted is not None:
        scores += [score(task, metric, estimate, chance) for task, metric, estimate, chance in shifted.rows]
    files.write_json(context.out / "scores.json", scores)
    files.write_json(context.out / "samples.json", continuations)
    with files.atomic_path(context.out / "items.parquet") as temporary:
        items = item_table(losses, held_out, tasks, shifted.groups if shifted is not None else {})
        items.to_parquet(temporary, index=False)
    outputs = ["scores.json", "items.parquet", "samples.json"]
    if settings["instructions"] is not None:
        outputs.append(instructions.ANSWERS)
    for name in ("paired.json", "reliability.json"):
        (context.out / name).unlink(missing_ok=True)
    if "parent" in context.inputs:
        parent = context.inputs["parent"].folder / "items.parquet"
        with _timed(clock, "paired"):
            differences = compare.table(context.out / "items.parquet", parent, settings["bootstrap"], seed)
        files.write_json(context.out / "paired.json", differences)
        outputs.append("paired.json")
    if report:
        files.write_json(context.out / "reliability.json", report)
        outputs.append("reliability.json")
    (context.out / "routing.parquet").unlink(missing_ok=True)
    if usage:
        routing.write(context.out / "routing.parquet", usage, PLACES)
        outputs.append("routing.parquet")
    (context.out / "depth.json").unlink(missing_ok=True)
    if ran:
        files.write_json(context.out / "depth.json", depth_table(model, ran))
        outputs.append("depth.json")
    (context.out / "images.json").unlink(missing_ok=True)
    if pictured:
        files.write_json(context.out / "images.json", pictured)
        outputs.append("images.json")
    predicted = sum(int(loss.tokens_N.sum()) for loss in losses.values())
    measured = {
        "tokens_per_second": round(predicted / clock["likelihood"], 1),
        "generated_tokens_per_second": round(made / generating, 1),
        "seconds": {name: round(value, 2) for name, value in clock.items()},
        # Linux counts in KiB, macOS in bytes.
        "peak_memory_gb": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024)
            / 1e9,
            3,
        ),
    }
    log.info("%s: %s", context.name, ", ".join(f"{name} {value:.1f} s" for name, value in clock.items()))
    return Result(
        outputs,
        headline(scores)
        | {"parameters": counted.total, "active_parameters": counted.running(depth.shares(model))}
        | ({"missing_sets": sorted(report["missing"])} if report else {}),
        measured,
    )


def _tasks(context: Context, model: Any, tokenizer: Any, clock: dict[str, float]) -> list[harness.TaskScores]:
    """The configured tasks and suites."""
    settings, seed, inputs = context.settings["evaluate"], context.settings["seed"], context.inputs
    shards.take_over(context)
    with _timed(clock, "tasks"):
        (call,) = shards.own_tasks(settings, inputs["tasks"])
        tasks = call.run(model, tokenizer, settings, context.work, seed, shards.identity(context, "tasks"))
    for name, suite in (("temporal", temporal), ("science", science)):
        if name in settings["suites"]:
            with _timed(clock, name):
                kept = shards.identity(context, name)
                tasks += suite.run(model, tokenizer, settings, inputs[name], context.work, seed, kept)
    if settings["instructions"] is not None:
        made_by = sample.model_digest(inputs["model"])
        with _timed(clock, "instructions"):
            tasks += instructions.run(
                model, tokenizer, settings, made_by, inputs["chat"], context.out, seed, context.name
            )
    return tasks


def score(
    task: str, metric: str, estimate: bootstrap.Estimate, chance: float | None = None
) -> dict[str, Any]:
    """One entry of scores.json; ci_low and ci_high are null where a single unit leaves nothing to resample."""
    entry = {
        "task": task,
        "metric": metric,
        "value": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "chance": chance,
    }
    return {
        key: round(value, PLACES) if isinstance(value, float) else value for key, value in entry.items()
    } | {"n": estimate.n}


def text_scores(
    losses: dict[str, likelihood.DomainLoss], held_out: set[str], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Bits per byte and perplexity by domain; averages of the trained domains and of those held out."""
    scores = []
    for domain, loss in losses.items():
        name = f"text/{domain}"
        scores.append(
            score(name, "bits_per_byte", likelihood.bits_per_byte({domain: loss}, resamples, seed, name))
        )
        scores.append(score(name, "perplexity", likelihood.perplexity(loss, resamples, seed, name)))
    for name, chosen in (("text/average", set(losses) - held_out), ("text/held-out", set(losses) & held_out)):
        members = {domain: losses[domain] for domain in sorted(chosen)}
        if members:
            scores.append(
                score(name, "bits_per_byte", likelihood.bits_per_byte(members, resamples, seed, name))
            )
    return scores


def task_scores(tasks: list[harness.TaskScores], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Every metric of every task; mc/average is the mean accuracy (acc: the likelier choice, not per character) of the choice tasks."""
    scores = [
        score(task.task, metric.name, metric.estimate, metric.chance)
        for task in tasks
        for metric in task.metrics
    ]
    choice = [task for task in tasks if task.multiple_choice and "acc" in task.items]
    if choice:
        strata = [(task.items["acc"], task.items["acc"] * 0 + 1) for task in choice]
        chance = sum(
            metric.chance or 0.0 for task in choice for metric in task.metrics if metric.name == "acc"
        ) / len(choice)
        scores.append(
            score(
                "mc/average",
                "acc",
                bootstrap.macro(strata, resamples, bootstrap.generator(seed, "mc/average")),
                chance,
            )
        )
    return scores


def item_table(
    losses: dict[str, likelihood.DomainLoss],
    held_out: set[str],
    tasks: list[harness.TaskScores],
    shifted: Mapping[str, moe.Group] | None = None,
) -> pd.DataFrame:
    """One row per block and per item, for paired comparisons (evaluate/compare.py)."""
    rows: list[dict[str, Any]] = []
    for domain, loss in losses.items():
        name = f"text/{domain}"
        common = {"task": name, "group": "held-out" if domain in held_out else "text", "cluster": name}
        for i, key in enumerate(loss.keys):
            numbers = {
                "nats": round(float(loss.nats_N[i]), PLACES),
                "bytes": int(loss.bytes_N[i]),
                "tokens": int(loss.tokens_N[i]),
            }
            rows.append(common | {"item": i, "key": key} | numbers)
    for name, texts in (shifted or {}).items():
        common = {"task": f"shift/{name}", "group": "shift", "cluster": f"shift/{name}"}
        for i, key in enumerate(texts.keys):
            numbers = {"nats": round(float(texts.nats_N[i]), PLACES), "bytes": int(texts.bytes_N[i])}
            rows.append(common | {"item": i, "key": key} | numbers)
    for task in tasks:
        group = task.group or ("mc" if task.multiple_choice else "other")
        common = {"task": task.task, "group": group, "cluster": task.cluster or task.task}
        for i, key in enumerate(task.keys):
            rows.append(
                common
                | {"item": i, "key": key}
                | {metric: round(float(values[i]), PLACES) for metric, values in task.items.items()}
            )
    first = ["task", "item", "key", "group", "cluster", "nats", "bytes", "tokens"]
    frame = pd.DataFrame(rows)
    frame = frame[first + sorted(set(frame.columns) - set(first))]
    return frame.astype({"item": "int64", "bytes": "Int64", "tokens": "Int64"})


def headline(scores: list[dict[str, Any]]) -> dict[str, float]:
    """The manifest's metrics: the averages."""
    names = {
        ("text/average", "bits_per_byte"): "bits_per_byte", ("text/held-out", "bits_per_byte"): "bits_per_byte_held_out",
        ("mc/average", "acc"): "mc_average", ("routing/load_cv", "load_cv"): "load_cv",
        ("depth/ran", "share"): "depth_ran", ("instructions_test", "rougeL"): "rougeL_test",
        ("images", "image_nats"): "image_nats", ("images", "text_nats"): "image_text_nats",
    }  # fmt: skip
    return {
        names[item["task"], item["metric"]]: item["value"]
        for item in scores
        if (item["task"], item["metric"]) in names
    }


def _routing(
    usage: dict[str, routing.Usage], held_out: set[str], resamples: int, seed: int
) -> Iterator[tuple[str, bootstrap.Estimate]]:
    """Over the trained domains, as text/average; over all when every domain is held out."""
    trained = {name: item for name, item in usage.items() if name not in held_out} or usage
    yield "load_cv", routing.mean_load_cv(trained, resamples, seed)
    yield "entropy", routing.normalised_entropy(trained, resamples, seed)


def depth_ran(
    ran: Mapping[str, np.ndarray], held_out: set[str], resamples: int, seed: int
) -> bootstrap.Estimate:
    """Share of the (token, layer) pairs of skipping layers whose FFN ran; domains as in routing."""
    trained = {name: item for name, item in ran.items() if name not in held_out} or ran
    strata = [(item.mean(1), np.ones(len(item))) for item in trained.values()]
    return bootstrap.macro(strata, resamples, bootstrap.generator(seed, "depth/ran"))


def depth_table(model: Any, ran: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """depth.json: the skipping layers, and for each domain the share of its tokens that ran, by layer."""
    found = depth.facts(model) | {"layers": model.config.num_hidden_layers}
    found["ran"] = {
        name: [round(float(value), PLACES) for value in item.mean(0)] for name, item in ran.items()
    }
    found["skipping"] = list(depth.skip.layers(model))
    return found


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - began
