"""What the three training stages have in common: load the model before, choose the data, fill in the loss weights."""

from typing import Any

from moesaic.data import mixtures
from moesaic.data.split import SPLITS
from moesaic.distill import cache, students, teachers
from moesaic.errors import InputError
from moesaic.flow import manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context
from moesaic.model import load
from moesaic.model.adapters import beside
from moesaic.train.objectives import Weights
from moesaic.train.streams import ChatStream, Stream, TaughtStream, TextStream, check_vocabulary


def load_stage_model(step: Manifest) -> Any:
    """The model of a finished step, its files checked. Raises InputError for one that is only whole with an adapter beside it."""
    beside.refuse(step)
    manifest.verify(step, only=["model"])
    return load.load_model(step.folder / "model", f"model of {step.folder}")


def streams(context: Context, model: Any, settings: dict[str, Any]) -> tuple[Stream, Stream]:
    """Training and validation data of the kind that the setting `data` names."""
    return (
        text_streams(context, model, settings) if settings["data"] == "text" else chat_streams(context, model)
    )


def text_streams(context: Context, model: Any, settings: dict[str, Any]) -> tuple[Stream, Stream]:
    """Training and validation blocks of the trained domains."""
    tokens, held_out = context.inputs["tokens"], context.settings["held_out"]
    check_vocabulary(tokens, model, context.name)
    mask = settings["document_mask"]
    return TextStream(tokens, "train", held_out, mask), TextStream(tokens, "validation", held_out, mask)


def chat_streams(context: Context, model: Any) -> tuple[Stream, Stream]:
    """Training and validation conversations."""
    chats = context.inputs["chat"]
    check_vocabulary(chats, model, context.name)
    return ChatStream(chats, "train"), ChatStream(chats, "validation")


def weights(settings: dict[str, Any], share: float) -> Weights:
    """Loss weights of a stage with a teacher. Args: settings: schema.Teaching as a dict. share: of the distillation loss."""
    return Weights(
        settings["balance"],
        settings["z_loss"],
        share,
        settings["temperature"],
        settings["router"],
        loss=settings["loss"],
        options=settings["losses"],
        student_text=tuple(settings["student_text"]),
    )


def teacher(
    context: Context,
    settings: dict[str, Any],
    step: Manifest | None,
    student: Any,
    streams: tuple[Stream, Stream],
) -> tuple[teachers.Teacher | None, Stream, Stream]:
    """A resident teacher and the streams as they are, or no teacher and streams that read what it said from its cache.

    Args:
        step: whose model is the teacher; looked at only when it is resident.

    Raises:
        InputError: a teacher of another vocabulary, a damaged cache, `student_text` that is not in the data.
    """
    unknown = sorted(set(settings["student_text"]) - set(streams[0].sizes))
    if unknown:
        raise InputError(
            f"student_text: no domain or chat source named {unknown[0]}; there are {', '.join(sorted(streams[0].sizes))}"
        )
    if settings["offline"] is not None:
        cached = cache.Cache(context.inputs["teacher"])
        students.check_vocabularies(cached.vocabulary, student.config.vocab_size)
        train, validation = (
            TaughtStream(stream, cached, split) for stream, split in zip(streams, SPLITS, strict=True)
        )
        return None, train, validation
    assert step is not None
    model = load_stage_model(step)
    students.check_teacher(model, student)
    return teachers.Teacher(model, settings["teacher_experts"], settings["teacher_scale"]), *streams


def mixture(context: Context, settings: dict[str, Any], stream: Stream) -> Any:
    """The configured mixture over a stream's domains."""
    return mixtures.build(settings["mixture"], stream.sizes, context.settings.get("like", {}))
