"""Token ids with the number of UTF-8 bytes that each token stands for, so that losses can be told in bits per byte."""

import json
from typing import Any

import numpy as np

from moesaic.errors import InputError


class Encoder:
    """Tokenises texts in parallel (the tokenizers library takes as many threads as this process has cores).

    Byte-level vocabularies (GPT-2, SmolLM2, Llama 3, Qwen) write each byte as one character, so a token's bytes are a look-up by
    id. Others (sentence pieces) go by the character offsets of the tokens, which also holds where a normaliser or a dummy prefix
    changes the text. Either way a document's sizes sum to its true number of bytes.
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                "model.tokenizer: a fast tokenizer (tokenizer.json) is needed; convert it with transformers first"
            )
        # A copy: the settings below are not for other users of the tokenizer.
        self.backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        # "<|endoftext|>" written in a text is text, not a token that ends documents.
        self.backend.encode_special_tokens = True
        self.table = byte_lengths(self.backend)

    def encode(self, texts: list[str], end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids int32 and bytes int32 of all tokens [tokens], and tokens per document [documents]; `end` (0 bytes) after each."""
        true = np.fromiter((_bytes(text) for text in texts), np.int64, len(texts))
        if self.table is None:
            return self._by_offsets(texts, true, end)
        ids: list[int] = []
        counts = np.empty(len(texts), np.int64)
        for i, encoding in enumerate(self.backend.encode_batch_fast(texts, add_special_tokens=False)):
            found = encoding.ids
            ids += found
            ids.append(end)
            counts[i] = len(found) + 1
        tokens = np.array(ids, dtype=np.int32)
        sizes = self.table[tokens]
        ends = np.cumsum(counts)
        sizes[ends - 1] = 0
        if not np.array_equal(np.add.reduceat(sizes, ends - counts, dtype=np.int64), true):
            # A normaliser changed some text (NFC of text that is not): count these by their offsets.
            return self._by_offsets(texts, true, end)
        return tokens, sizes, counts

    def _by_offsets(
        self, texts: list[str], true: np.ndarray, end: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A token has the bytes from where the tokens before it end to where it ends; the last one has what is left."""
        ids, sizes, counts = [], [], []
        for text, total, encoding in zip(
            texts, true, self.backend.encode_batch(texts, add_special_tokens=False), strict=True
        ):
            if text.isascii():
                upto = np.arange(len(text) + 1)
            else:
                upto = np.zeros(len(text) + 1, np.int64)
                np.cumsum(np.fromiter((_bytes(c) for c in text), np.int64, len(text)), out=upto[1:])
            found = np.array([*encoding.ids, end], np.int32)
            ends = np.maximum.accumulate(np.array([0, *(stop for _, stop in encoding.offsets)], np.int64))
            size = np.append(np.diff(upto[ends]), 0).astype(np.int32)
            if len(found) > 1:
                size[-2] += total - size.sum()
            ids.append(found)
            sizes.append(size)
            counts.append(len(found))
        return np.concatenate(ids), np.concatenate(sizes), np.array(counts, np.int64)


def byte_lengths(backend: Any) -> np.ndarray | None:
    """Bytes of each token id [V] int32 of a byte-level vocabulary; None for vocabularies of another kind."""
    if "ByteLevel" not in _decoders(json.loads(backend.to_str())["decoder"]):
        return None
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    table = np.zeros(max(vocabulary.values()) + 1, np.int32)
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token, i in vocabulary.items():
        # Added tokens are written as they are; all others have one character per byte.
        table[i] = _bytes(token) if token in added else len(token)
    return table


def _decoders(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_decoders(inner) for inner in decoder.get("decoders", [])))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
