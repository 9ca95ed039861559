"""Step `tune`: supervised fine-tuning on conversations, loss on the answers only; with more or fewer layers where `depth` says so, of an adapter alone
where `adapter` does."""

from collections.abc import Iterator

import torch
from torch import Tensor

from moesaic.data.sampler import in_turn
from moesaic.flow.step import Context, Result
from moesaic.model import depth
from moesaic.model.adapters import lora
from moesaic.train import adapt, loop, packing, stage
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.streams import Stream, collate


def run(context: Context) -> Result | None:
    """Next-token loss on answer tokens (end of turn included) + balance loss."""
    settings = context.settings["tune"]
    deep = settings["depth"]
    start = context.inputs["dense" if deep and deep["of"] == "dense" else "model"]
    model = stage.load_stage_model(start)
    train, validation = stage.chat_streams(context, model)
    steered = None
    tokens = adapt.image_tokens(start)
    rows = settings["adapter"] and settings["adapter"]["method"] != lora.METHOD
    if settings["adapter"]:
        adapt.begin(model, settings, tokens, context.settings["seed"])
    if deep:
        depth.prepare(model, deep, lambda rows: text(train, rows))
        steered = deep["skip"]
    trainee = Trainee(
        model, Weights(settings["balance"], settings["z_loss"], router=settings["router"], depth=steered)
    )
    trainee.images = tokens
    job = Job(
        context=context,
        settings=settings,
        trainee=trainee,
        mixture=stage.mixture(context, settings, train),
        train=train,
        validation=validation,
        tokenizer_from=start.folder / "model",
        reference=context.inputs.get("dense"),
        # Adapters for pictures and depth routers read a row as a sequence.
        collate=packing.collate_of(settings["packing"] and not (deep or rows)),
    )
    return loop.train(job)


def text(stream: Stream, rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Ids and mask of the first rows of every set, in turn, row by row: what influence is measured on."""
    for sample in in_turn(stream.sizes, rows):
        batch = collate(stream.rows([sample]), [sample.domain], 1, 1.0, torch.device("cpu"))
        yield batch.ids_BT, batch.mask_BT
