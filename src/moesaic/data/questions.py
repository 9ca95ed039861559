"""Questions of the instruction data with their answers: what a model is asked when its own text is wanted."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesaic.data import chat_sets
from moesaic.errors import InputError
from moesaic.flow import manifest
from moesaic.flow.manifest import Manifest

log = logging.getLogger("moesaic.questions")


@dataclass(frozen=True)
class Question:
    """The first question of a conversation."""

    id: str
    """Unique in a split: the source and the row."""
    source: str
    prompt: list[int]
    """Tokens up to where the answer begins, as the chat step rendered them for training."""
    answer: list[int]
    """Tokens of the answer that the data has, with its end of turn."""


def read(
    chats: Manifest, split: str, sources: Sequence[str] = (), per_source: int | None = None, max_prompt: int | None = None,
    key: str = "distill.samples",
) -> tuple[list[Question], int]:  # fmt: skip
    """The first questions of each source, in order, and how many were left out because they are longer than max_prompt tokens.

    Of equal prompts only the first is taken: asked again it would be on the training and the validation side, and twice in what is measured.

    Args:
        sources: empty: all. key: of the configuration, for messages.

    Raises:
        InputError: a missing or damaged file, a source that is not there, or no question left.
    """
    manifest.verify(chats, only=[split])
    sets = chat_sets.open_chat(chats, split)
    unknown = sorted(set(sources) - set(sets))
    if unknown:
        raise InputError(
            f"{key}.sources: no chat source named {unknown[0]}; there are {', '.join(sorted(sets))}"
        )
    found: list[Question] = []
    seen: set[bytes] = set()
    long = again = 0
    for name in sorted(sources or sets):
        taken = 0
        for row in range(len(sets[name])):
            if per_source is not None and taken == per_source:
                break
            prompt, answer = parts(*sets[name][row])
            if max_prompt is not None and len(prompt) > max_prompt:
                long += 1
                continue
            digest = hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).digest()
            if digest in seen:
                again += 1
                continue
            seen.add(digest)
            taken += 1
            found.append(Question(f"{name}/{row}", name, prompt, answer))
    if not found:
        where = chats.folder / f"{split}.parquet"
        raise InputError(
            f"{key}.max_prompt: {where} has no question of at most {max_prompt} tokens ({long} are longer); raise it or add conversations"
        )
    if again:
        log.info("%s: %d questions that were asked already are left out", key, again)
    return found, long


def parts(ids: np.ndarray, mask: np.ndarray) -> tuple[list[int], list[int]]:
    """Prompt and answer of a conversation's first turn. Args: ids [T]; mask [T], 1 on answers."""
    begin = int(np.argmax(mask))
    assert mask[begin] == 1, "a conversation without an answer"
    rest = np.flatnonzero(mask[begin:] == 0)
    end = begin + int(rest[0]) if len(rest) else len(mask)
    return ids[:begin].tolist(), ids[begin:end].tolist()
