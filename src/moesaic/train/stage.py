"""What the three training stages have in common: load the model before, choose the data, fill in the loss weights."""

from typing import Any

from moesaic.data import mixtures
from moesaic.flow import manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context
from moesaic.model import load
from moesaic.train.streams import ChatStream, Stream, TextStream, check_vocabulary


def load_stage_model(step: Manifest) -> Any:
    """The model of a finished step, its files checked."""
    manifest.verify(step, only=["model"])
    return load.load_model(step.folder / "model", f"model of {step.folder}")


def text_streams(context: Context, model: Any, settings: dict[str, Any]) -> tuple[Stream, Stream]:
    """Training and validation blocks of the trained domains."""
    tokens, held_out = context.inputs["tokens"], context.settings["held_out"]
    check_vocabulary(tokens, model, context.name)
    mask = settings["document_mask"]
    return TextStream(tokens, "train", held_out, mask), TextStream(tokens, "validation", held_out, mask)


def chat_streams(context: Context, model: Any, settings: dict[str, Any]) -> tuple[Stream, Stream]:
    """Training and validation conversations."""
    chats = context.inputs["chat"]
    check_vocabulary(chats, model, context.name)
    return ChatStream(chats, "train"), ChatStream(chats, "validation")


def mixture(context: Context, settings: dict[str, Any], stream: Stream) -> Any:
    """The configured mixture over a stream's domains."""
    return mixtures.build(settings["mixture"], stream.sizes, context.settings.get("like", {}))
