"""Step `chat`: instruction data as token ids with a loss mask that is 1 exactly on the answers and their end of turn.

What the reliability suite asks of the same run is dropped and counted (`in_reliability`): a model is not tested on what it was tuned on.
"""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from moesaic.data import chat_template, sources
from moesaic.data.conversations import Message, chosen, fields, reader
from moesaic.data.images import records
from moesaic.data.split import SPLITS, side_of
from moesaic.errors import InputError
from moesaic.evaluate.reliability import asked as tested
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context, Result
from moesaic.model.dense import check_tokenizer
from moesaic.model.load import load_tokenizer
from moesaic.schema import IMAGES, Chat, ChatSource, LocalFiles

log = logging.getLogger("moesaic.chat")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
    ]
)
GROUP = 512


class Dropped(Exception):
    """A conversation that cannot be used; the message is the reason counted in stats.json."""


@dataclass
class Counts:
    """Where every conversation of a source went."""

    conversations_in: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    answer_tokens: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def run(context: Context) -> Result:
    """Write `{train,validation}.parquet` and `stats.json`. Metrics: conversations and answer tokens by split."""
    settings = Chat.model_validate(context.settings["chat"])
    taken = [*settings.sources, *_with_images(context.inputs.get(IMAGES))]
    if not taken:
        raise InputError(
            "data.chat.sources is empty: add a source, or leave tune (and distill on chat) out of stages"
        )
    dense = context.inputs["dense"]
    tokenizer = load_tokenizer(dense.folder / "model")
    check_tokenizer(tokenizer, dense.metrics["vocab_size"])
    if not tokenizer.chat_template:
        raise InputError(
            "model.chat_template: the model's tokenizer has no chat template; take a shipped one (tulu or chatml), or give a Jinja file"
        )
    counts: dict[str, Counts] = {}
    seen: set[bytes] = set()
    asked = tested.instructions(context.settings.get("reliability"))
    with contextlib.ExitStack() as stack:
        write = {s: stack.enter_context(_writer(context.out / f"{s}.parquet")) for s in SPLITS}
        for i, source in enumerate(taken):
            found = counts.setdefault(source.name, Counts())
            _source(
                source,
                f"data.chat.sources.{i}" if source.name != IMAGES else "data.images",
                settings,
                context.settings["seed"],
                tokenizer,
                seen,
                asked,
                found,
                write,
            )
        kept = {s: sum(c.kept[s] for c in counts.values()) for s in SPLITS}
        _check_images(counts.get(IMAGES), settings)
        if not kept["train"] or (settings.validation and not kept["validation"]):
            side = "train" if not kept["train"] else "validation"
            raise InputError(
                f"data.chat: empty {side} split of {sum(kept.values())} usable conversations; add conversations or change data.chat.validation"
            )
    stats = {name: _summary(found) for name, found in counts.items()}
    files.write_json(context.out / "stats.json", stats)
    for name, found in counts.items():
        log.info(
            "%s %s: kept %d of %d conversations",
            context.name,
            name,
            found.kept.total(),
            found.conversations_in,
        )
    metrics = {
        "conversations": kept,
        "answer_tokens": {s: sum(c.answer_tokens[s] for c in counts.values()) for s in SPLITS},
        "sources": sorted(counts),
        "vocab_size": dense.metrics["vocab_size"],
    }
    return Result([*(f"{s}.parquet" for s in SPLITS), "stats.json"], metrics)


def _with_images(images: Manifest | None) -> list[ChatSource]:
    """The conversations of the images step, when there is one."""
    if images is None:
        return []
    manifest.verify(images, only=[records.NAME])
    at = LocalFiles(kind="files", path=str(images.folder / records.NAME))
    return [ChatSource(at=at, format="messages", name=IMAGES)]


def _check_images(found: Counts | None, settings: Chat) -> None:
    """A side without pictures would be seen only when it is too late. Raises InputError."""
    if found is None or (found.kept["train"] and (found.kept["validation"] or not settings.validation)):
        return
    side = "validation" if found.kept["train"] else "train"
    raise InputError(
        f"data.images: no conversation with pictures on the {side} side (kept {dict(found.kept)}, dropped {dict(found.dropped)}); "
        f"too_long: raise data.chat.max_tokens ({settings.max_tokens}) or lower data.images.turns or grid; otherwise add pictures or change data.chat.validation"
    )


def encode(messages: list[Message], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and its loss mask (0 or 1 per token).

    Before each answer stands what generation starts from (the template with its generation prompt), so training and generation
    see the same tokens. An answer's span is what it adds to these, up to and with its end-of-turn token.

    Raises:
        Dropped: special_token when a message spells one out; template_mismatch when the template does not grow turn by turn, or writes no header
            for an answer that is to come; template_refuses when it raises an exception.
    """
    special = set(tokenizer.all_special_ids) | {
        i for i, t in tokenizer.added_tokens_decoder.items() if t.special
    }
    ids = _render(messages, tokenizer, False)
    mask = [0] * len(ids)
    for i, message in enumerate(messages):
        if special & set(tokenizer(message["content"], add_special_tokens=False)["input_ids"]):
            raise Dropped("special_token")
        if message["role"] != "assistant":
            continue
        before, through = _render(messages[:i], tokenizer, True), _render(messages[: i + 1], tokenizer, False)
        if through[: len(before)] != before or ids[: len(through)] != through:
            raise Dropped("template_mismatch")
        answer = through[len(before) :]
        # a header of the answer that the generation prompt should have written
        if message["content"] and answer[:1] and answer[0] in special:
            raise Dropped("template_mismatch")
        stop = next((j + 1 for j, token in enumerate(answer) if token in special), len(answer))
        mask[len(before) : len(before) + stop] = [1] * stop
    return ids, mask


def _render(messages: list[Message], tokenizer: Any, prompt: bool) -> list[int]:
    try:
        return chat_template.render(messages, tokenizer, prompt)
    except jinja2.TemplateError as error:
        raise Dropped("template_refuses") from error


def _source(
    source: ChatSource,
    key: str,
    settings: Chat,
    seed: int,
    tokenizer: Any,
    seen: set[bytes],
    asked: set[str],
    counts: Counts,
    write: dict[str, Any],
) -> None:
    """Stream one source; several sources may share a name, and so their counts."""
    local = Counter[str]()
    found: list[str] = []
    read = reader(source)
    for record in sources.located(source.at, key):
        if source.max_conversations is not None and local.total() >= source.max_conversations:
            break
        found = found or list(record.fields)
        if not chosen(source.where, record.fields, key):
            continue
        counts.conversations_in += 1
        try:
            messages = _messages(read(record.fields), seen)
            if any(m["role"] == "user" and tested.compared(m["content"]) in asked for m in messages):
                raise Dropped("in_reliability")
            ids, mask = encode(messages, tokenizer)
            if len(ids) > settings.max_tokens:
                raise Dropped("too_long")
        except Dropped as reason:
            counts.dropped[str(reason)] += 1
            local[str(reason)] += 1
            continue
        split = split_of(messages, settings.validation, seed)
        write[split](record.id, source.name, ids, mask)
        counts.kept[split] += 1
        counts.answer_tokens[split] += sum(mask)
        local["kept"] += 1
    if not local.total():
        through = " that `where` lets through" if source.where else ""
        raise InputError(f"{key}: empty, there is no conversation in it{through}")
    if local["malformed"] == local.total():
        raise InputError(
            f"{key}.format: no record has the form of '{source.format}' ({fields(source)}); its fields are {', '.join(found)}"
        )
    if local["template_mismatch"] == local.total():
        raise InputError(
            "model.chat_template: with it a conversation does not begin like its own first turns, or it leaves the assistant's header out where "
            "add_generation_prompt asks for it, so answers cannot be told apart; give another"
        )
    if local["template_refuses"] == local.total():
        raise InputError(
            "model.chat_template: it refuses every conversation of the source (raise_exception in it), system prompts perhaps; give another"
        )


def _messages(messages: list[Message] | None, seen: set[bytes]) -> list[Message]:
    if messages is None:
        raise Dropped("malformed")
    if not all(m["content"] for m in messages if m["role"] == "assistant"):
        raise Dropped("empty_answer")
    digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=16).digest()
    if digest in seen:
        raise Dropped("duplicate")
    seen.add(digest)
    return messages


def split_of(messages: list[Message], validation: float, seed: int) -> str:
    """The side of the question: equal ones never stand on both."""
    question = next(m["content"] for m in messages if m["role"] == "user")
    return side_of(f"{seed}:{question}", validation)


def _summary(counts: Counts) -> dict[str, Any]:
    kept, answers = ({s: c[s] for s in SPLITS} for c in (counts.kept, counts.answer_tokens))
    return {
        "conversations_in": counts.conversations_in,
        "conversations_kept": counts.kept.total(),
        "kept": kept,
        "answer_tokens": answers,
        "dropped": dict(counts.dropped),
    }


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Any]:
    rows: list[tuple[str, str, list[int], list[int]]] = []
    with (
        files.atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):

        def flush() -> None:
            if rows:
                writer.write_table(
                    pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)
                )
                rows.clear()

        def write(*row: Any) -> None:
            rows.append(row)
            if len(rows) >= GROUP:
                flush()

        yield write
        flush()
