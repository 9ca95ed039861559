"""Step `tune`: supervised fine-tuning on conversations, loss on the answers only."""

from moesaic.flow.step import Context, Result
from moesaic.train import loop, stage
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee, Weights


def run(context: Context) -> Result | None:
    """Next-token loss on answer tokens (end of turn included) + balance loss."""
    settings = context.settings["tune"]
    model = stage.load_stage_model(context.inputs["model"])
    train, validation = stage.chat_streams(context, model, settings)
    job = Job(
        context=context,
        settings=settings,
        trainee=Trainee(model, Weights(settings["balance"], settings["z_loss"], router=settings["router"])),
        mixture=stage.mixture(context, settings, train),
        train=train,
        validation=validation,
        tokenizer_from=context.inputs["model"].folder / "model",
        reference=context.inputs.get("dense"),
    )
    return loop.train(job)
