"""Interleaved records: conversations whose turns are text and pictures in any order, and the same as plain conversations of image tokens.

    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Draw a red circle."}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "Here:"}, {"type": "image", "image": "img/7.png"}]}]}

the form that multimodal chat templates take; `content` may also be a string. Paths are relative to the file that the record stands in.
Pictures with captions become such records: drawn and described in turn, one direction for each picture.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.data.conversations import FORMATS, Message
from moesaic.data.images import codebook, vocabulary
from moesaic.data.images.codebook import Codebook

NAME = "conversations.jsonl"
"""What the images step writes for the chat step."""


@dataclass(frozen=True)
class Picture:
    """An image of a record."""

    path: Path
    pixels: np.ndarray
    """[H p, W p, 3] in 0..1."""


@dataclass(frozen=True)
class Turn:
    """What one side says: words and pictures in their order."""

    role: str
    parts: tuple[str | Picture, ...]


Interleaved = tuple[Turn, ...]


def captioned(
    pairs: Sequence[tuple[str, str]], turns: int, draw: str, describe: str
) -> Iterator[dict[str, Any]]:
    """Records of the form above from (path, caption) pairs; each picture stands in one record, in one direction, so that none is seen from both sides.

    Args:
        turns: pictures of a record. draw: asks for a picture of {caption}. describe: asks for the caption of the picture before it.
    """
    for i in range(0, len(pairs), turns):
        talk: list[dict[str, Any]] = []
        for j, (path, caption) in enumerate(pairs[i : i + turns]):
            picture, text = {"type": "image", "image": path}, {"type": "text", "text": caption}
            if (i // turns + j) % 2 == 0:
                asked = {"type": "text", "text": draw.replace("{caption}", caption)}
                talk += [{"role": "user", "content": [asked]}, {"role": "assistant", "content": [picture]}]
            else:
                asked = {"type": "text", "text": describe}
                talk += [
                    {"role": "user", "content": [picture, asked]},
                    {"role": "assistant", "content": [text]},
                ]
        yield {"messages": talk}


def parse(
    record: dict[str, Any], find: Callable[[str], Path], grid: tuple[int, int], patch: int
) -> Interleaved | None:
    """A record with its images read; None when it has not the form above, or spells out an image token.

    Args:
        find: path in the record -> file.

    Raises:
        InputError: an image file that cannot be read.
    """
    turns = record.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return None
    found = []
    for turn in turns:
        content = turn.get("content")
        listed = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(listed, list) or not isinstance(turn.get("role"), str):
            return None
        parts: list[str | Picture] = []
        for item in listed:
            kind = item.get("type") if isinstance(item, dict) else None
            value = item.get(kind) if kind in ("text", "image") else None
            if not isinstance(value, str) or (kind == "text" and vocabulary.ANY.search(value)):
                return None
            if kind == "text":
                parts.append(value)
            else:
                path = find(value)
                parts.append(Picture(path, codebook.read(path, grid, patch)))
        found.append(Turn(turn["role"], tuple(parts)))
    # the order of the roles is checked as in conversations of text
    plain = [
        {"role": t.role, "content": "".join(p if isinstance(p, str) else "image" for p in t.parts)}
        for t in found
    ]
    return tuple(found) if FORMATS["messages"]({"messages": plain}) is not None else None


def encode(record: Interleaved, book: Codebook) -> list[Message]:
    """The record as a conversation of text, pictures written as image tokens."""

    def text(part: str | Picture) -> str:
        return part if isinstance(part, str) else vocabulary.write(book.encode(part.pixels))

    return [{"role": turn.role, "content": "".join(map(text, turn.parts))} for turn in record]


def words(record: Interleaved) -> str:
    """The text of a record, turn by turn, without pictures."""
    return "\n".join(" ".join(part for part in turn.parts if isinstance(part, str)) for turn in record)


def pictures(record: Interleaved) -> list[Picture]:
    """The pictures of a record, in order."""
    return [part for turn in record for part in turn.parts if isinstance(part, Picture)]


Judge = Callable[[str, Interleaved], float]
"""(aspect, record) -> score from 0 to 5."""
