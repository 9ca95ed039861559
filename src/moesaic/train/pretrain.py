"""Step `pretrain`: continual pre-training on the corpus, optionally with distillation from the dense parent on the same tokens."""

from moesaic.flow.step import Context, Result
from moesaic.train import loop, stage
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee, Weights


def run(context: Context) -> Result | None:
    """Next-token loss + balance loss (+ teacher_weight * KL(dense ; model))."""
    settings = context.settings["pretrain"]
    model = stage.load_stage_model(context.inputs["model"])
    teacher = stage.load_stage_model(context.inputs["dense"]) if settings["teacher"] == "dense" else None
    train, validation = stage.text_streams(context, model, settings)
    weights = Weights(
        settings["balance"],
        settings["z_loss"],
        settings["teacher_weight"] if teacher is not None else 0.0,
        router=settings["router"],
    )
    job = Job(
        context=context,
        settings=settings,
        trainee=Trainee(model, weights, teacher),
        mixture=stage.mixture(context, settings, train),
        train=train,
        validation=validation,
        tokenizer_from=context.inputs["model"].folder / "model",
        reference=context.inputs.get("dense"),
    )
    return loop.train(job)
