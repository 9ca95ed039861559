"""Exact and near duplicates over a whole corpus, one document at a time."""

import hashlib
import logging
import re
import zlib

import numpy as np
from datasketch import MinHash, MinHashLSH

log = logging.getLogger("moesaic.data")

WORDS = 5
PERMUTATIONS = 128
BATCH = 1 << 14
# Scripts written without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han with its extensions.
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
# Odd multipliers of a polynomial hash over the words of a shingle; uint64 arithmetic wraps.
DRAWN = MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32").permutations
"""One set of permutations for all."""
LARGE = (5_000_000, 20_000_000, 50_000_000)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Duplicates:
    """Remembers every kept document: 16 bytes for exact copies, a few kB for near ones (MinHash LSH, Broder 1997).

    A document is a near duplicate when the estimated Jaccard similarity of its set of 5-word shingles (case and white space
    ignored; in scripts without spaces, such as Chinese, Japanese and Thai, each character is a word) with that of a kept
    document reaches `threshold`. 128 permutations: standard error about 0.035 at 0.8. The first document is kept, so the
    order of the sources decides which copy stays.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.seen: set[bytes] = set()
        self.kept: list[np.ndarray] = []
        # Candidates are checked, so the bands are chosen to miss few (false positives weigh 0.05, false negatives 0.95).
        self.index = (
            MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.05, 0.95))
            if threshold < 1.0
            else None
        )

    def check(self, text: str) -> str | None:
        """'exact_duplicate', 'near_duplicate', or None; a document that is neither is remembered."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self.seen:
            return "exact_duplicate"
        if self.index is not None:
            sketch = signature(text)
            # The index finds candidates by equal bands; the signatures decide.
            if any(
                np.mean(self.kept[i] == sketch.hashvalues) >= self.threshold for i in self.index.query(sketch)
            ):
                return "near_duplicate"
            self.index.insert(len(self.kept), sketch, check_duplication=False)
            self.kept.append(sketch.hashvalues)
            if len(self.kept) in LARGE:
                log.warning(
                    "near duplicates: %d million documents are kept in memory, a few kB each; data.clean.near_duplicates: 1 switches it off (SlimPajama, for one, has none)",
                    len(self.kept) // 1_000_000,
                )
        self.seen.add(digest)
        return None


def signature(text: str) -> MinHash:
    """MinHash of a text's distinct 5-word shingles (of all its words when it has fewer). Memory is bounded for any length."""
    text = text.lower()
    words = WORD.findall(text) if not text.isascii() and HAS_UNSPACED.search(text) else text.split()
    hashes = np.fromiter(
        (zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64, len(words)
    )
    width = min(WORDS, len(words))
    shingles = np.zeros(max(len(words) - width + 1, 0), np.uint64)
    for i in range(width):
        shingles = (shingles + hashes[i : i + len(shingles)]) * MULTIPLIER
        shingles ^= shingles >> np.uint64(29)
    distinct = np.unique((shingles >> np.uint64(32)).astype(np.uint32))
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32", hashfunc=int, permutations=DRAWN)
    for start in range(0, len(distinct), BATCH):
        sketch.update_batch(distinct[start : start + BATCH].tolist())
    return sketch
