"""Repair and filter documents; every drop has a reason."""

import hashlib
import re
import unicodedata
from typing import Any

import numpy as np

REASONS = (
    "empty",
    "too_short",
    "too_long",
    "few_letters",
    "repeated_lines",
    "exact_duplicate",
    "near_duplicate",
)
PERMUTATIONS = 64
MAX_SHINGLES = 512
_WORD = re.compile(r"\w+")
_NEWLINES = re.compile(r"\r\n?|\u2028|\u2029")


def repair(text: str) -> str:
    """Undo mojibake (ftfy), normalise to NFC and \\n, drop control characters and trailing blanks."""
    import ftfy

    if not text.isascii():
        text = ftfy.fix_text(text, normalization=None, uncurl_quotes=False)
        text = unicodedata.normalize("NFC", text)
    text = _NEWLINES.sub("\n", text).replace("\x00", "")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def quality(text: str, settings: dict[str, Any]) -> str | None:
    """The first filter of schema.Clean that a repaired document fails, or None."""
    if not text:
        return "empty"
    if len(text) < settings["min_characters"]:
        return "too_short"
    if len(text) > settings["max_characters"]:
        return "too_long"
    if sum(c.isalpha() or c.isspace() for c in text) < settings["min_letters"] * len(text):
        return "few_letters"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) > 4 and 1 - len(set(lines)) / len(lines) > settings["max_repeated_lines"]:
        return "repeated_lines"
    return None


class Deduplicator:
    """Exact duplicates by SHA-1 of the words, near duplicates by MinHash LSH (datasketch), over all domains together."""

    def __init__(self, threshold: float):
        from datasketch import MinHashLSH

        self.threshold = threshold
        self.exact: set[bytes] = set()
        self.lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS) if threshold < 1 else None

    def check(self, text: str) -> str | None:
        """The kind of duplicate that a document is of one seen before, or None; remembers it then.

        Shingles are runs of 5 words; of a long document the MAX_SHINGLES with the smallest hashes stand for all (a bottom sketch).
        """
        words = _WORD.findall(text.lower())
        digest = hashlib.sha1(" ".join(words or [text]).encode()).digest()
        if digest in self.exact:
            return "exact_duplicate"
        self.exact.add(digest)
        if self.lsh is None:
            return None
        sketch = self._sketch(words)
        if self.lsh.query(sketch):
            return "near_duplicate"
        self.lsh.insert(len(self.exact), sketch, check_duplication=False)
        return None

    def _sketch(self, words: list[str]) -> Any:
        from datasketch import MinHash

        shingles = {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        hashes = np.sort(
            np.array(
                [
                    int.from_bytes(hashlib.blake2b(s.encode(), digest_size=4).digest(), "little")
                    for s in shingles
                ],
                dtype=np.uint64,
            )
        )
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        sketch.update_batch([int(h) for h in hashes[:MAX_SHINGLES]])
        return sketch
