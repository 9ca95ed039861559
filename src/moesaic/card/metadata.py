"""The card's metadata, as hubs read it: licence, base model, tags, and results with their intervals (model-index)."""

import re
from collections.abc import Iterator
from typing import Any

from moesaic.card import story
from moesaic.card.parent import Parent
from moesaic.report.gather import Gathered, Point, Score

LEFT_OUT = ("routing/", "depth/", "images")
"""Scores that describe the routers or need a picture beside them; they are in scores.json and the report."""


def scores(point: Point) -> Iterator[Score]:
    """What was measured of a model, text first."""
    found = [
        item
        for item in point.scores.values()
        if item["value"] is not None and not item["task"].startswith(LEFT_OUT)
    ]
    yield from sorted(found, key=lambda item: not item["task"].startswith("text/"))


def experts(shape: dict[str, Any]) -> int:
    """Routed experts of a layer, from the model's config.json; 0 for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return int(next((shape[name] for name in names if name in shape), 0))


def metadata(run: Gathered, point: Point, parent: Parent, name: str, shape: dict[str, Any]) -> Any:
    """huggingface_hub.ModelCardData of a model.

    Args:
        name: of the model. shape: its config.json.
    """
    from huggingface_hub import ModelCardData

    path = story.lineage(run, point)
    tags = ["moesaic", *(["moe", "mixture-of-experts"] if experts(shape) else [])]
    tags += ["conversational"] if {"tune", "preference"} & {item.stage for item in path} else []
    results = [_result(item) for item in scores(point)]
    license = parent.license.lower() if parent.license else None
    known: dict[str, Any] = {"license": license}
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        known = {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", license).strip("-")}
    elif license == "other":
        known |= {"license_name": parent.license_name}
    return ModelCardData(
        model_name=name,
        base_model=parent.name,
        language=parent.languages or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
        datasets=story.hub_datasets(run, path) or None,
        eval_results=results or None,
        license_link=parent.license_link,
        **known,
    )


def _result(score: Score) -> Any:
    from huggingface_hub import EvalResult

    task, text = score["task"], score["task"].startswith("text/")
    keys = ("ci_low", "ci_high", "n", "chance")
    interval = {key: round(score[key], 6) for key in keys if score.get(key) is not None}
    return EvalResult(
        task_type="text-generation",
        task_name="next-token prediction" if text else "question answering",
        dataset_type="validation-text" if text else "lm-evaluation-harness",
        dataset_name=task,
        dataset_config=task,  # results are grouped by it, never by the name
        metric_type=score["metric"],
        metric_value=round(score["value"], 6),
        metric_args=interval or None,
    )
