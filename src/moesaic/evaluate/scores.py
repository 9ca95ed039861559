"""What an evaluation writes down: scores.json, items.parquet, depth.json and the manifest's headline, from what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moesaic.evaluate import bootstrap, harness, likelihood, routing
from moesaic.evaluate.reliability import moe
from moesaic.model import depth

PLACES = 6
"""Digits kept after the point."""


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
    """Every metric of every task; mc/average is the mean accuracy (acc: the likelier choice, not per character) of the choice tasks.

    A group, such as mmlu, counts as one: its items together.
    """
    scores = [
        score(task.task, metric.name, metric.estimate, metric.chance)
        for task in tasks
        for metric in task.metrics
    ]
    choice: dict[str, list[harness.TaskScores]] = {}
    for task in tasks:
        if task.multiple_choice and "acc" in task.items:
            choice.setdefault(task.asked or task.task, []).append(task)
    if choice:
        strata = [_stratum(members) for members in choice.values()]
        chance = float(np.mean([_chance(members) for members in choice.values()]))
        scores.append(
            score(
                "mc/average",
                "acc",
                bootstrap.macro(strata, resamples, bootstrap.generator(seed, "mc/average"), rate=True),
                chance,
            )
        )
    return scores


def _stratum(tasks: Sequence[harness.TaskScores]) -> bootstrap.Stratum:
    parts = [bootstrap.stratum(task.items["acc"], task.units) for task in tasks]
    return np.concatenate([top for top, _ in parts]), np.concatenate([bottom for _, bottom in parts])


def _chance(tasks: Sequence[harness.TaskScores]) -> float:
    """Of the accuracy over the items of all of them."""
    found = [
        (metric.chance or 0.0, len(task.items["acc"]))
        for task in tasks
        for metric in task.metrics
        if metric.name == "acc"
    ]
    return sum(chance * n for chance, n in found) / sum(n for _, n in found) if found else 0.0


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
            rows.append(common | {"item": i, "key": key, "unit": i} | numbers)
    for name, texts in (shifted or {}).items():
        common = {"task": f"shift/{name}", "group": "shift", "cluster": f"shift/{name}"}
        for i, key in enumerate(texts.keys):
            numbers = {"nats": round(float(texts.nats_N[i]), PLACES), "bytes": int(texts.bytes_N[i])}
            rows.append(common | {"item": i, "key": key, "unit": i} | numbers)
    counted: dict[str, int] = {}
    for task in tasks:
        # As in mc/average: a choice task without an accuracy by item (cola has its correlation alone) is no part of it.
        group = task.group or ("mc" if task.multiple_choice and "acc" in task.items else "other")
        cluster = task.cluster or (task.asked if group == "mc" else "") or task.task
        common = {"task": task.task, "group": group, "cluster": cluster}
        # The tasks of a group ask items of their own, those of a cluster the same ones again.
        first_unit = 0 if task.cluster else counted.get(cluster, 0)
        units = np.unique(task.units, return_inverse=True)[1] if task.units else np.arange(len(task.keys))
        counted[cluster] = first_unit + len(task.keys)
        for i, key in enumerate(task.keys):
            rows.append(
                common
                | {"item": i, "key": key, "unit": first_unit + int(units[i])}
                | {metric: round(float(values[i]), PLACES) for metric, values in task.items.items()}
            )
    first = ["task", "item", "key", "group", "cluster", "unit", "nats", "bytes", "tokens"]
    frame = pd.DataFrame(rows)
    frame = frame[first + sorted(set(frame.columns) - set(first))]
    return frame.astype({"item": "int64", "unit": "int64", "bytes": "Int64", "tokens": "Int64"})


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


def routing_estimates(
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
