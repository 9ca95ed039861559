"""Step `chat`: instruction data as token ids with a loss mask that covers exactly the answers and their end-of-turn token."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moesaic.data import sources
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context, Result
from moesaic.model.load import load_tokenizer
from moesaic.schema import ChatSource

Messages = list[dict[str, str]]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
    ]
)
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def run(context: Context) -> Result:
    """Write train.parquet, validation.parquet and stats.json; conversations in = kept + dropped by reason."""
    settings, seed = context.settings["chat"], context.settings["seed"]
    if not settings["sources"]:
        raise InputError(
            "data.chat.sources: empty; add a source of conversations, or leave tune and distill on chat out of stages"
        )
    dense = context.inputs["dense"]
    tokenizer = load_tokenizer(dense.folder / "model")
    if not tokenizer.chat_template:
        raise InputError(
            "model.chat_template: the tokenizer has no chat template; set model.chat_template to a Jinja file"
        )
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    stats: dict[str, Any] = {}
    seen: set[str] = set()
    for index, raw in enumerate(settings["sources"]):
        source = ChatSource.model_validate(raw)
        counts: Counter[str] = Counter()
        for row, record in enumerate(sources.records(source.at)):
            if source.max_conversations is not None and row >= source.max_conversations:
                break
            reason, item = _prepare(record, source.format, tokenizer, settings["max_tokens"], seen)
            counts[reason] += 1
            if item is not None:
                split = _split(item.pop("prompt"), settings["validation"], seed)
                rows[split].append({"id": f"{index}:{row}", "source": source.name, **item})
        if not counts["kept"]:
            raise InputError(
                f"data.chat.sources.{index}: no conversation is left of {sum(counts.values())} (dropped: {dict(counts)}); check format and max_tokens"
            )
        stats.setdefault(source.name, Counter()).update(counts)
    for split, items in rows.items():
        if not items:
            raise InputError(
                f"data.chat: no conversation fell into {split}; add conversations or change data.chat.validation"
            )
        with files.atomic_path(context.out / f"{split}.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(items, schema=SCHEMA), temporary, compression="zstd")
    report = {
        name: {
            "in": sum(c.values()),
            "kept": c["kept"],
            "dropped": {k: v for k, v in sorted(c.items()) if k != "kept"},
        }
        for name, c in stats.items()
    }
    files.write_json(context.out / "stats.json", report)
    metrics = {
        "vocab_size": dense.metrics["vocab_size"],
        "sources": sorted(stats),
        "conversations": {split: len(items) for split, items in rows.items()},
        "answer_tokens": {
            split: sum(sum(item["loss_mask"]) for item in items) for split, items in rows.items()
        },
    }
    return Result(["train.parquet", "validation.parquet", "stats.json"], metrics)


def to_messages(record: dict[str, Any], form: str) -> Messages:
    """A record in one of the three formats as role-content messages. Raises KeyError, TypeError or ValueError when malformed."""
    if form == "alpaca":
        extra = record.get("input") or ""
        prompt = f"{record['instruction']}\n\n{extra}" if extra.strip() else record["instruction"]
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": record["output"]}]
    elif form == "messages":
        messages = [{"role": item["role"], "content": item["content"]} for item in record["messages"]]
    else:
        messages = [
            {"role": SHAREGPT_ROLES[item["from"]], "content": item["value"]}
            for item in record["conversations"]
        ]
    if not any(message["role"] == "assistant" for message in messages) or not all(
        isinstance(m["content"], str) for m in messages
    ):
        raise ValueError("no answer, or content that is not text")
    return messages


def render(messages: Messages, tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """Token ids and loss mask of a conversation; None when the template does not extend itself turn by turn.

    For each answer the conversation is rendered up to the answer's start (with the generation prompt) and up to its end; the
    tokens between are the answer and its end-of-turn token. What the template puts after that token (a newline) is not learned.
    """
    ids = _template(tokenizer, messages, generate=False)
    mask = [0] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _template(tokenizer, messages[:turn], generate=True)
        stop = _template(tokenizer, messages[: turn + 1], generate=False)
        if ids[: len(start)] != start or ids[: len(stop)] != stop:
            return None
        end = len(stop)
        while end > len(start) and not tokenizer.decode([ids[end - 1]]).strip():
            end -= 1
        mask[len(start) : end] = [1] * (end - len(start))
    return ids, mask


def _template(tokenizer: Any, messages: Messages, generate: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _prepare(
    record: dict[str, Any], form: str, tokenizer: Any, limit: int, seen: set[str]
) -> tuple[str, dict[str, Any] | None]:
    try:
        messages = to_messages(record, form)
    except (KeyError, TypeError, ValueError):
        return "malformed", None
    if any(m["role"] == "assistant" and not m["content"].strip() for m in messages):
        return "empty_answer", None
    digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
    if digest in seen:
        return "duplicate", None
    seen.add(digest)
    rendered = render(messages, tokenizer)
    if rendered is None:
        return "template_mismatch", None
    ids, mask = rendered
    if len(ids) > limit:
        return "too_long", None
    prompt = (
        next(m["content"] for m in messages if m["role"] == "user")
        if any(m["role"] == "user" for m in messages)
        else ""
    )
    return "kept", {"prompt": " ".join(prompt.lower().split()), "input_ids": ids, "loss_mask": mask}


def _split(prompt: str, share: float, seed: int) -> str:
    """By the first prompt, so that one prompt with two answers stays on one side."""
    value = (
        int.from_bytes(hashlib.blake2b(f"{seed}:{prompt}".encode(), digest_size=8).digest(), "little") / 2**64
    )
    return "validation" if value < share else "train"


class ChatSet:
    """Conversations of one source."""

    def __init__(self, table: pa.Table):
        self._ids, self._mask = (
            table.column("input_ids").combine_chunks(),
            table.column("loss_mask").combine_chunks(),
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [T] and loss mask [T]."""
        return np.asarray(self._ids[row].values, dtype=np.int64), np.asarray(
            self._mask[row].values, dtype=np.int8
        )


def open_chat(manifest: Manifest, split: str) -> dict[str, ChatSet]:
    """Conversations by source; split is train or validation."""
    path: Path = manifest.folder / f"{split}.parquet"
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: damaged ({' '.join(str(error).split())[:150]}); delete {manifest.folder / 'manifest.json'} and run again"
        ) from error
    names = np.asarray(table.column("source").to_pylist())
    return {name: ChatSet(table.filter(pa.array(names == name))) for name in sorted(set(names.tolist()))}
