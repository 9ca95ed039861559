"""Step `evaluate`: one model on validation text, multiple-choice tasks and routing; every number with its interval."""

import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moesaic.data import packed
from moesaic.data.images import vocabulary
from moesaic.evaluate import choices, compare, harness, instructions, likelihood, routing, samples, shards
from moesaic.evaluate.images import suite as images
from moesaic.evaluate.reliability import moe
from moesaic.evaluate.reliability import suite as reliability
from moesaic.evaluate.science import suite as science
from moesaic.evaluate.scores import (
    PLACES,
    depth_ran,
    depth_table,
    headline,
    item_table,
    routing_estimates,
    score,
    task_scores,
    text_scores,
)
from moesaic.evaluate.temporal import suite as temporal
from moesaic.flow import files, manifest
from moesaic.flow.step import Context, Result
from moesaic.generate import sample
from moesaic.model import depth, families, size

log = logging.getLogger("moesaic.evaluate")

ITEMS = "items.parquet"
OPTIONAL = (
    "paired.json",
    "reliability.json",
    "routing.parquet",
    "depth.json",
    "images.json",
    choices.NAME,
    instructions.ANSWERS,
)
"""What depends on the model and the settings; of an earlier run with others they are removed."""


def run(context: Context) -> Result:
    """Write scores.json, items.parquet, samples.json; for an MoE routing.parquet; with a parent paired.json, with their data reliability.json and images.json.

    Text and tasks are scored with the words of text alone, so that image tokens change nothing where there is no picture.
    """
    settings, seed = context.settings["evaluate"], context.settings["seed"]
    held_out, resamples = set(context.settings["held_out"]), settings["bootstrap"]
    clock: dict[str, float] = {}
    for name in OPTIONAL:
        (context.out / name).unlink(missing_ok=True)
    parent = context.inputs.get("parent")
    if parent is not None:
        manifest.verify(parent, [ITEMS])
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
        tasks = _tasks(context, model, tokenizer, clock)
        shifted: moe.Measured | None = None
        report: dict[str, Any] = {}
        if "reliability" in settings["suites"]:
            with _timed(clock, "reliability"):
                asked, shifted, report = _reliability(context, model, tokenizer)
                tasks += asked
        with _timed(clock, "samples"):
            continuations, made, generating = samples.generate(model, tokenizer)
    of_pictures: list[Any] = []
    pictured: dict[str, Any] = {}
    if "images" in context.inputs:
        with _timed(clock, "pictures"):
            both = (context.inputs["images"], context.inputs["chat"])
            of_pictures, pictured = images.run(model, tokenizer, settings, *both, seed, context.name)
    usage = {name: loss.usage for name, loss in losses.items() if loss.usage is not None}
    ran = {name: loss.ran_NL for name, loss in losses.items() if loss.ran_NL is not None}
    with _timed(clock, "intervals"):
        scores = text_scores(losses, held_out, resamples, seed) + task_scores(tasks, resamples, seed)
        if usage:
            scores += [
                score(f"routing/{metric}", metric, estimate)
                for metric, estimate in routing_estimates(usage, held_out, resamples, seed)
            ]
        if ran:
            scores.append(score("depth/ran", "share", depth_ran(ran, held_out, resamples, seed)))
        scores += [score("images", *item) for item in of_pictures]
    if shifted is not None:
        scores += [score(*row) for row in shifted.rows]
    files.write_json(context.out / "scores.json", scores)
    files.write_json(context.out / "samples.json", continuations)
    with files.atomic_path(context.out / ITEMS) as temporary:
        items = item_table(losses, held_out, tasks, shifted.groups if shifted is not None else {})
        items.to_parquet(temporary, index=False)
    answers = {task.task: task.answers for task in tasks if task.answers}
    if answers:
        files.write_json(context.out / choices.NAME, answers)
    if parent is not None:
        with _timed(clock, "paired"):
            differences = compare.table(context.out / ITEMS, parent.folder / ITEMS, resamples, seed)
        files.write_json(context.out / "paired.json", differences)
    if report:
        files.write_json(context.out / "reliability.json", report)
    if usage:
        numbers = [part.layer for part in families.Routing(model).layers]
        routing.write(context.out / "routing.parquet", usage, numbers, PLACES)
    if ran:
        files.write_json(context.out / "depth.json", depth_table(model, ran))
    if pictured:
        files.write_json(context.out / "images.json", pictured)
    predicted = sum(int(loss.tokens_N.sum()) for loss in losses.values())
    measured = {
        "tokens_per_second": round(predicted / clock["likelihood"], 1),
        "generated_tokens_per_second": round(made / generating, 1),
        "seconds": {name: round(value, 2) for name, value in clock.items()},
        "peak_memory_gb": _peak_memory_gb(),
    }
    log.info("%s: %s", context.name, ", ".join(f"{name} {value:.1f} s" for name, value in clock.items()))
    return Result(
        ["scores.json", ITEMS, "samples.json", *(name for name in OPTIONAL if (context.out / name).exists())],
        headline(scores)
        | {"parameters": counted.total, "active_parameters": counted.running(depth.shares(model))}
        | ({"missing_sets": sorted(report["missing"])} if report else {}),
        measured,
    )


def _reliability(
    context: Context, model: Any, tokenizer: Any
) -> tuple[list[harness.TaskScores], moe.Measured, dict[str, Any]]:
    """The reliability suite, the routers under shifted text, and reliability.json of both."""
    settings, seed, source = (
        context.settings["evaluate"],
        context.settings["seed"],
        context.inputs["reliability"],
    )
    kept = shards.identity(context, "reliability")
    found = reliability.run(model, tokenizer, settings, source, context.work, seed, kept)
    texts = reliability.texts(source)
    shifted = moe.run(model, tokenizer, texts, settings["batch"], settings["bootstrap"], seed)
    return found.tasks, shifted, found.report | shifted.details


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


@contextmanager
def _timed(clock: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - began


def _peak_memory_gb() -> float:
    """Of this process so far. Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)
