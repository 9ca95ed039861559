"""Step `tokens`: tokenise every domain and pack it into blocks, in memory-mappable Arrow files.

Documents are concatenated in order, each followed by the end-of-document token, and cut every `block` tokens; blocks are put in
random order by training, not here. Text is streamed: memory does not depend on the size of the corpus.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moesaic.data import packed
from moesaic.data.lengths import Encoder
from moesaic.data.split import SPLITS
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.progress import Progress
from moesaic.flow.step import Context, Result
from moesaic.model.dense import check_tokenizer
from moesaic.model.load import load_tokenizer

log = logging.getLogger("moesaic.tokens")

# What one call of the tokenizer gets: enough to keep all cores busy, little enough to stay small in memory.
BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 1 << 19


@dataclass
class Stats:
    """Where every document and token of one split went: tokens_in == tokens_in_blocks + tokens_dropped_remainder."""

    documents: int = 0
    documents_not_used: int = 0
    tokens_in: int = 0
    tokens_in_blocks: int = 0
    tokens_dropped_remainder: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the tokenised documents."""
    predicted_bytes: int = 0
    """UTF-8 bytes of the tokens that have a token before them in their block: what a loss over the blocks covers."""
    blocks: int = 0


def run(context: Context) -> Result:
    """Write `{domain}.{train,validation}.arrow` and `stats.json`. Metrics: blocks, tokens and bytes of each domain."""
    block = context.settings["block"]
    documents, dense = context.inputs["documents"], context.inputs["dense"]
    tokenizer = load_tokenizer(dense.folder / "model")
    vocabulary = dense.metrics["vocab_size"]
    check_tokenizer(tokenizer, vocabulary)
    context_length = files.read_json(dense.folder / "model" / "config.json").get("max_position_embeddings")
    if context_length is not None and block > context_length:
        log.warning(
            "data.block: %d tokens, and the dense parent was trained for %d (max_position_embeddings): beyond that its losses are no measure; take at most %d",
            block, context_length, context_length,
        )  # fmt: skip
    encoder, end = Encoder(tokenizer), end_of_document(tokenizer)
    names = sorted(
        {Path(o.path).name.rsplit(".", 2)[0] for o in documents.outputs if o.path.endswith(".parquet")}
    )
    stats: dict[str, dict[str, Stats]] = {}
    for name in names:
        for split in SPLITS:
            source, target = (
                documents.folder / f"{name}.{split}.parquet",
                context.out / f"{name}.{split}.arrow",
            )
            limit = context.settings[f"max_{split}_tokens"]
            found = pack_file(source, target, encoder, end, block, limit, f"{context.name} {name} {split}")
            if not found.blocks:
                raise InputError(
                    f"data.domains.{name}: its {split} text is {found.tokens_in} tokens, less than one block of {block}; add documents, "
                    f"make data.block smaller{', raise data.validation' if split == 'validation' else ''} "
                    f"or raise data.max_{split}_tokens"
                )
            stats.setdefault(name, {})[split] = found
    files.write_json(
        context.out / "stats.json", {n: {s: asdict(v) for s, v in item.items()} for n, item in stats.items()}
    )
    outputs = [f"{name}.{split}.arrow" for name in names for split in SPLITS]
    metrics = {
        name: {
            "train_blocks": item["train"].blocks,
            "train_tokens": item["train"].tokens_in_blocks,
            "validation_blocks": item["validation"].blocks,
            "validation_tokens": item["validation"].tokens_in_blocks,
            "validation_bytes": item["validation"].predicted_bytes,
        }
        for name, item in stats.items()
    }
    headline = {"block": block, "vocab_size": vocabulary, "end_of_document": end, "domains": metrics}
    return Result([*outputs, "stats.json"], headline)


def end_of_document(tokenizer: Any) -> int:
    """The id that ends a document: <|endoftext|> when the vocabulary has it, otherwise the end-of-sequence token.

    Chat models often declare their end of turn (<|im_end|>) as end of sequence; text never ends a turn.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if "<|endoftext|>" in vocabulary:
        return vocabulary["<|endoftext|>"]
    if tokenizer.eos_token_id is None:
        raise InputError(
            "model.tokenizer: it has neither <|endoftext|> nor an end-of-sequence token to end documents with"
        )
    return int(tokenizer.eos_token_id)


def pack_file(
    source: Path,
    target: Path,
    encoder: Encoder,
    end: int,
    block: int,
    limit: int | None = None,
    name: str = "tokens",
) -> Stats:
    """Tokenise and pack one Parquet file of documents into one Arrow file.

    Args:
        end: id of the token after each document.
        block: tokens in a block; what is left over at the end is dropped and counted.
        limit: stop after the document in which this many tokens are reached; documents after it are counted as not used.
    """
    try:
        # Pre-buffering would hold the whole compressed file in memory.
        reader = pq.ParquetFile(source, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{source}: not readable ({error}); delete its manifest.json and run the documents step again"
        ) from error
    stats = Stats()
    packer = Packer(block, packed.BATCH)
    total = reader.metadata.num_rows
    progress = Progress(name, total, "documents")
    # One thread tokenises the next texts (outside of Python's lock, on all cores) while this one packs the last ones.
    with reader, packed.writer(target, block) as write, ThreadPoolExecutor(1) as pool:
        # A small limit needs little text: about 8 characters per token are surely enough for the first batch.
        texts = _batches(reader, BATCH_CHARACTERS if limit is None else min(BATCH_CHARACTERS, 8 * limit))
        batch = next(texts, None)
        ahead = pool.submit(encoder.encode, batch, end) if batch else None
        while ahead is not None:
            batch = next(texts, None)
            tokens, sizes, counts = ahead.result()
            used = len(counts)
            if limit is not None and stats.tokens_in + len(tokens) >= limit:
                used = int(np.searchsorted(np.cumsum(counts) + stats.tokens_in, limit)) + 1
                length = int(counts[:used].sum())
                tokens, sizes, counts, batch = tokens[:length], sizes[:length], counts[:used], None
            ahead = pool.submit(encoder.encode, batch, end) if batch else None
            stats.documents += used
            stats.tokens_in += len(tokens)
            stats.text_bytes += int(sizes.sum())
            for full in packer.add(tokens, sizes, counts):
                _write(write, full, stats)
            progress.update(used, f"{stats.tokens_in:,} tokens")
        for full in packer.rest():
            _write(write, full, stats)
    stats.documents_not_used = total - stats.documents
    stats.tokens_dropped_remainder = stats.tokens_in - stats.tokens_in_blocks
    return stats


def _write(write: Any, full: packed.Columns, stats: Stats) -> None:
    write(full)
    stats.blocks += len(full.bytes)
    stats.tokens_in_blocks += full.tokens.size
    stats.predicted_bytes += int(full.bytes.sum())


def _batches(reader: pq.ParquetFile, characters: int) -> Iterator[list[str]]:
    texts: list[str] = []
    held = 0
    for rows in reader.iter_batches(batch_size=64, columns=["text"]):
        for text in rows.column(0).to_pylist():
            texts.append(text)
            held += len(text)
            if len(texts) >= BATCH_DOCUMENTS or held >= characters:
                yield texts
                texts, held = [], 0
    if texts:
        yield texts


class Packer:
    """Concatenates documents and cuts off record batches of full blocks."""

    def __init__(self, block: int, batch: int):
        self.block, self.batch = block, batch
        self.tokens: list[np.ndarray] = []
        self.sizes: list[np.ndarray] = []
        self.starts: list[np.ndarray] = []
        self.held = 0

    def add(self, tokens: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> Iterator[packed.Columns]:
        """Append whole documents; yield record batches of exactly `batch` blocks.

        Args:
            tokens, sizes: ids and UTF-8 bytes of the tokens, document after document [tokens].
            counts: tokens in each document [documents].
        """
        first = np.zeros(len(tokens), dtype=bool)
        first[(np.cumsum(counts) - counts)[counts > 0]] = True
        self.tokens.append(tokens)
        self.sizes.append(sizes)
        self.starts.append(first)
        self.held += len(tokens)
        while self.held >= self.batch * self.block:
            yield self._cut(self.batch)

    def rest(self) -> Iterator[packed.Columns]:
        """The full blocks that are left; the tokens after them are dropped."""
        if count := self.held // self.block:
            yield self._cut(count)

    def _cut(self, blocks: int) -> packed.Columns:
        size = blocks * self.block
        parts = []
        for name in ("tokens", "sizes", "starts"):
            whole = np.concatenate(getattr(self, name))
            parts.append(whole[:size].reshape(blocks, self.block))
            # A copy: a view would keep the whole array alive.
            setattr(self, name, [whole[size:].copy()])
        self.held -= size
        tokens, sizes, starts = parts
        rows, positions = np.nonzero(starts)
        return packed.Columns(
            tokens=tokens.astype(np.int32, copy=False),
            starts=positions.astype(np.int32),
            starts_per_block=np.bincount(rows, minlength=blocks),
            bytes=(sizes.sum(axis=1) - sizes[:, 0]).astype(np.int32),
        )
