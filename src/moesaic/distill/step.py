"""Step `distill`: a sparser or smaller student learns from the dense parent or from the MoE of the stage before."""

from moesaic.distill import losses, students
from moesaic.flow.step import Context, Result
from moesaic.train import loop, stage
from moesaic.train.job import Job
from moesaic.train.objectives import Trainee


def run(context: Context) -> Result | None:
    """Build the student, load the teacher, train with the configured loss."""
    settings = context.settings["distill"]
    moe, dense = context.inputs["model"], context.inputs.get("dense")
    start = dense if settings["student"]["of"] == "dense" else moe
    teacher_step = dense if settings["teacher"] == "dense" else moe
    assert start is not None
    assert teacher_step is not None
    student = students.make(stage.load_stage_model(start), settings["student"])
    teacher = stage.load_stage_model(teacher_step)
    students.check_teacher(teacher, student)
    streams = stage.text_streams if settings["data"] == "text" else stage.chat_streams
    train, validation = streams(context, student, settings)
    job = Job(
        context=context,
        settings=settings,
        trainee=Trainee(student, losses.METHODS[settings["loss"]](settings), teacher),
        mixture=stage.mixture(context, settings, train),
        train=train,
        validation=validation,
        tokenizer_from=start.folder / "model",
        reference=dense,
    )
    return loop.train(job)
