"""Step `preference`: train on one round's pairs (or on their chosen answers alone)."""

import logging
import math
from typing import Any

from moesaic.flow import files, manifest
from moesaic.flow.step import Context, Result
from moesaic.preference import rating
from moesaic.train import loop, pairs, stage, streams
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee, Weights

log = logging.getLogger("moesaic.preference")
SFT = "sft"


def run(context: Context) -> Result | None:
    """Pair loss + balance loss; the reference's log-probabilities come with the pairs."""
    settings = dict(context.settings["preference"])
    model = stage.load_stage_model(context.inputs["model"])
    rated = {name: item for name, item in context.inputs.items() if name.startswith("pairs-")}
    records: list[dict[str, Any]] = []
    for item in rated.values():
        manifest.verify(item)
        streams.check_vocabulary(item, model, context.name)
        records += files.read_lines(item.folder / rating.PAIRS)
    # By id, so that neither the number of shards nor their order has a part in what is drawn.
    train, held = pairs.split(
        sorted(records, key=lambda item: item["id"]), settings["validation"], context.settings["seed"]
    )
    if settings["epochs"] is not None:
        settings["steps"] = math.ceil(settings["epochs"] * len(train) / settings["batch"])
    weights = Weights(settings["balance"], settings["z_loss"], router=settings["router"])
    supervised = settings["loss"] == SFT
    stream = pairs.ChosenStream if supervised else pairs.PairStream
    data = stream(train)
    job = Job(
        context=context,
        settings=settings,
        trainee=Trainee(model, weights)
        if supervised
        else pairs.PairTrainee(model, weights, settings["loss"], settings),
        mixture=stage.mixture(context, settings, data),
        train=data,
        validation=stream(held),
        tokenizer_from=context.inputs["model"].folder / "model",
        collate=streams.collate if supervised else pairs.collate,
        count=streams.count_targets if supervised else pairs.count,
    )
    result = loop.train(job)
    if result is not None:
        result.metrics["rounds"] = [
            *context.inputs["model"].metrics.get("rounds", []),
            {
                "train": len(train),
                "validation": len(held),
                "counts": _added([item.metrics["counts"] for item in rated.values()]),
            },
        ]
    return result


def _added(shards: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Counts by kind, added up over the shards."""
    out: dict[str, dict[str, int]] = {}
    for counts in shards:
        for kind, found in counts.items():
            mine = out.setdefault(kind, dict.fromkeys(found, 0))
            for name, value in found.items():
                mine[name] += value
    return dict(sorted(out.items()))
