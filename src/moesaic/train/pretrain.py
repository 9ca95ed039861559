"""Step `pretrain`: continual pre-training on the corpus, optionally with distillation from the dense parent on the same tokens."""

from moesaic.flow.step import Context, Result
from moesaic.train import loop, stage
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee


def run(context: Context) -> Result | None:
    """Next-token loss + balance loss; with a teacher, teacher_weight of it is the distillation loss (KL(dense ; model) by default)."""
    settings = context.settings["pretrain"]
    model = stage.load_stage_model(context.inputs["model"])
    train, validation = stage.text_streams(context, model, settings)
    teacher, share = None, 0.0
    if settings["teacher"] is not None:
        share = settings["teacher_weight"]
        streams = (train, validation)
        teacher, train, validation = stage.teacher(
            context, settings, context.inputs.get("dense"), model, streams
        )
    job = Job(
        context=context,
        settings=settings,
        trainee=Trainee(model, stage.weights(settings, share), teacher),
        mixture=stage.mixture(context, settings, train),
        train=train,
        validation=validation,
        tokenizer_from=context.inputs["model"].folder / "model",
        reference=context.inputs.get("dense"),
    )
    return loop.train(job)
