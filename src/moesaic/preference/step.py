"""Step `preference`: train on one round's pairs (or on their chosen answers alone)."""

import logging

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
    records = pairs.read(rated.values(), rating.PAIRS, model, context.name)
    train, held = pairs.split(records, settings["validation"], context.settings["seed"])
    pairs.set_steps(settings, len(train))
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
                "steps": result.metrics["steps"],
                "tokens": result.metrics["tokens"],
                "train": len(train),
                "validation": len(held),
                "counts": dict(
                    sorted(pairs.added([item.metrics["counts"] for item in rated.values()]).items())
                ),
            },
        ]
    return result
