"""Step `tokens`: tokenise with the model's own tokenizer, append end-of-document tokens, pack into fixed-length blocks.

Blocks are written as uncompressed Arrow, so that training maps them into memory: `tokens` [block] int32, `starts` (positions where
a document begins), `bytes` (UTF-8 bytes of the predicted tokens, for bits per byte).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moesaic.errors import InputError
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.progress import Progress
from moesaic.flow.step import Context, Result
from moesaic.model.dense import check_tokenizer
from moesaic.model.load import load_tokenizer

BATCH = 256
ROWS = 1024


def run(context: Context) -> Result:
    """Write `{domain}.{split}.arrow` and `stats.json`; tokens made = tokens in blocks + remainder."""
    documents, dense = context.inputs["documents"], context.inputs["dense"]
    manifest.verify(documents)
    tokenizer = load_tokenizer(dense.folder / "model")
    check_tokenizer(tokenizer, dense.metrics["vocab_size"])
    end = end_of_document(tokenizer)
    lengths = byte_lengths(tokenizer)
    stats: dict[str, Any] = {}
    for name in sorted(documents.metrics["domains"]):
        for split in ("train", "validation"):
            counted = pack_file(
                documents.folder / f"{name}.{split}.parquet", context.out / f"{name}.{split}.arrow", tokenizer, lengths, end,
                context.settings["block"], context.settings[f"max_{split}_tokens"],
            )  # fmt: skip
            if counted["blocks"] == 0:
                raise InputError(
                    f"data.domains.{name}: its {split} text fills no block of data.block = {context.settings['block']} tokens; add text, or lower data.block"
                )
            stats.setdefault(name, {})[split] = counted
    files.write_json(context.out / "stats.json", stats)
    domains = {
        name: {f"{split}_{key}": item[split][key] for split in item for key in ("blocks", "tokens", "bytes")}
        for name, item in stats.items()
    }
    outputs = [f"{name}.{split}.arrow" for name in stats for split in ("train", "validation")]
    head = {
        "block": context.settings["block"],
        "vocab_size": dense.metrics["vocab_size"],
        "end_of_document": end,
    }
    return Result([*outputs, "stats.json"], head | {"domains": domains})


def end_of_document(tokenizer: Any) -> int:
    """Id that separates documents: <|endoftext|> where the vocabulary has it (a chat model's eos ends turns, not documents), else eos."""
    found = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    if found is None:
        raise InputError(
            "model.tokenizer: it has neither <|endoftext|> nor an end-of-sequence token to separate documents"
        )
    return int(found)


def byte_lengths(tokenizer: Any) -> np.ndarray:
    """UTF-8 bytes that each token id stands for, [V] int32; 0 for special tokens.

    Byte-level BPE spells each byte as one printable character, so a token's length in characters is its length in bytes;
    SentencePiece vocabularies write bytes as <0xAB> and blanks as U+2581.
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids) | {
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    byte_level = "ByteLevel" in tokenizer.backend_tokenizer.to_str()[:20_000] or "\u0120" in "".join(
        list(vocabulary)[:20_000]
    )
    out = np.zeros(max(vocabulary.values()) + 1, dtype=np.int32)
    for token, index in vocabulary.items():
        if index in special:
            continue
        if byte_level:
            out[index] = len(token)
        elif len(token) == 6 and token.startswith("<0x"):
            out[index] = 1
        else:
            out[index] = len(token.replace("\u2581", " ").encode())
    return out


def pack_file(
    source: Path, target: Path, tokenizer: Any, lengths: np.ndarray, end: int, block: int, limit: int | None
) -> dict[str, Any]:
    """Tokenise one Parquet file of documents into one Arrow file of blocks, streaming.

    Returns:
        Counts: documents, documents_not_used (beyond `limit` tokens), tokens (in blocks), bytes (predicted), blocks, remainder.
    """
    counts = {
        "documents": 0,
        "documents_not_used": 0,
        "tokens": 0,
        "bytes": 0,
        "blocks": 0,
        "tokens_dropped_remainder": 0,
    }
    total = pq.ParquetFile(source).metadata.num_rows
    progress = Progress(f"tokenise {source.stem}", total, "documents")
    schema = pa.schema(
        [("tokens", pa.list_(pa.int32(), block)), ("starts", pa.list_(pa.int32())), ("bytes", pa.int32())]
    )
    left = np.zeros(0, dtype=np.int32)
    left_starts = np.zeros(0, dtype=np.int64)
    made = 0
    with (
        files.atomic_path(target) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for texts in _texts(source):
            if limit is not None and made >= limit:
                counts["documents_not_used"] += len(texts)
                continue
            pieces, starts = [left], [left_starts]
            at = len(left)
            for number, encoding in enumerate(
                tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ):
                if limit is not None and made >= limit:
                    counts["documents_not_used"] += len(texts) - number
                    break
                ids = np.array([*encoding.ids, end], dtype=np.int32)
                pieces.append(ids)
                starts.append(np.array([at]))
                at += len(ids)
                made += len(ids)
                counts["documents"] += 1
            stream, begin = np.concatenate(pieces), np.concatenate(starts)
            whole = len(stream) // block
            if whole:
                _write(writer, schema, stream[: whole * block].reshape(whole, block), begin, lengths, counts)
            left, left_starts = stream[whole * block :], begin[begin >= whole * block] - whole * block
            progress.update(len(texts), f"{made} tokens")
    counts["tokens_dropped_remainder"] = len(left)
    assert made == counts["tokens"] + len(left)
    return counts


def _texts(source: Path) -> Iterator[list[str]]:
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(batch_size=BATCH, columns=["text"]):
            yield batch.column("text").to_pylist()


def _write(
    writer: Any,
    schema: Any,
    blocks_NT: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    counts: dict[str, Any],
) -> None:
    block = blocks_NT.shape[1]
    predicted = lengths[blocks_NT[:, 1:]].sum(axis=1).astype(np.int32)
    row, position = np.divmod(starts[starts < blocks_NT.size], block)
    offsets = np.searchsorted(row, np.arange(len(blocks_NT) + 1)).astype(np.int32)
    for begin in range(0, len(blocks_NT), ROWS):
        end = min(begin + ROWS, len(blocks_NT))
        inside = slice(offsets[begin], offsets[end])
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(blocks_NT[begin:end].ravel()), block),
            pa.ListArray.from_arrays(
                pa.array(offsets[begin : end + 1] - offsets[begin]),
                pa.array(position[inside].astype(np.int32)),
            ),
            pa.array(predicted[begin:end]),
        ]
        writer.write_batch(pa.record_batch(columns, schema=schema))
    counts["blocks"] += len(blocks_NT)
    counts["tokens"] += blocks_NT.size
    counts["bytes"] += int(predicted.sum())


def tokens_of(step: Manifest) -> int:
    """All training tokens of the corpus."""
    return sum(item["train_tokens"] for item in step.metrics["domains"].values())
