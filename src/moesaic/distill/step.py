"""Step `distill`: a sparser or smaller student learns from the dense parent or from the MoE of the stage before."""

from moesaic.distill import rounds, students
from moesaic.flow.step import Context, Result
from moesaic.train import loop, packing, stage
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee


def run(context: Context) -> Result | None:
    """Build the student, load the teacher or its cache, train with the configured loss."""
    settings = context.settings["distill"]
    if settings["data"] == "samples":
        return _on_samples(context)
    moe, dense = context.inputs["model"], context.inputs.get("dense")
    start = dense if settings["student"]["of"] == "dense" else moe
    assert start is not None
    student = stage.load_stage_model(start)
    streams = stage.streams(context, student, settings)
    student = students.make(student, settings["student"], streams[0])
    teacher_step = dense if settings["teacher"] == "dense" else moe
    teacher, train, validation = stage.teacher(context, settings, teacher_step, student, streams)
    job = Job(
        context=context,
        settings=settings,
        trainee=Trainee(student, stage.weights(settings, 1.0 - settings["language_model"]), teacher),
        mixture=stage.mixture(context, settings, train),
        train=train,
        validation=validation,
        tokenizer_from=start.folder / "model",
        reference=dense,
        collate=packing.collate_of(settings["data"] == "chat" and settings["packing"]),
    )
    return loop.train(job)


def _on_samples(context: Context) -> Result | None:
    """One round on sampled answers; the manifest says what the rounds so far were trained on."""
    job, told = rounds.job(context)
    result = loop.train(job)
    if result is not None:
        before = [] if context.settings["distill"]["student"] else context.inputs["student"].metrics["rounds"]
        result.metrics["rounds"] = [
            *before,
            told | {key: result.metrics[key] for key in ("steps", "tokens")},
        ]
    return result
