"""Live attacks: words of a sentence are changed, by the model's own answers, until its verdict turns over. Two black-box greedy searches.

deepwordbug (Gao et al. 2018, arXiv 1801.04354): the words that matter most, one after the other, get the typo that hurts most.
pwws (Ren et al. 2019, ACL P19-1103, section 3): words are replaced by the WordNet synonym that hurts most, in the order of
H_i = softmax(S)_i * (P(y | x) - P(y | x with synonym i)) with the saliency S_i = P(y | x) - P(y | x without word i).
Both know the probability of the right verdict among the choices and nothing else of the model.

Shapes: W words of a sentence, N items.
"""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moesaic.evaluate.reliability.styles import KEYBOARD

WORD = re.compile(r"[A-Za-z]+(?:['\u2019][a-z]+)?")
EDITS = 30
"""Most letters that deepwordbug changes in a sentence (its epsilon)."""
KEPT = frozenset(
    WORD.findall(
        "a an and are as at be been but by can could did do does for from had has have he her him his i if in into is it its me my no nor "
        "not of on or our she so than that the their them then there these they this those to too us was we were what when where which "
        "while who why will with would you your cannot hardly neither never nobody none nothing nowhere without"
    )
)
"""Words that are never changed: function words, and those that negate."""


def kept(word: str) -> bool:
    """True for a word that an attack leaves alone: a function word, or one that negates, such as `isn't`."""
    plain = word.lower().replace("\u2019", "'")
    return plain in KEPT or plain.endswith("n't")


Ask = Callable[[Sequence[str]], list[tuple[float, bool]]]
"""Texts -> of each the probability of the right verdict, and whether the model gives it."""


@dataclass
class Search:
    """One sentence under attack."""

    pieces: list[str]
    """Words and what stands between them; joined they are the text."""
    words: list[int]
    """Which pieces may be changed."""
    ask: Ask
    seen: dict[str, tuple[float, bool]] = field(default_factory=dict)
    """Every text that was asked about; a repeated one costs no query."""

    @classmethod
    def of(cls, text: str, ask: Ask) -> "Search":
        """Split a text."""
        pieces, end = [], 0
        words = []
        for match in WORD.finditer(text):
            pieces += [text[end : match.start()], match[0]]
            if not kept(match[0]) and len(match[0]) > 1:
                words.append(len(pieces) - 1)
            end = match.end()
        return cls([*pieces, text[end:]], words, ask)

    def text(self, changes: Mapping[int, str]) -> str:
        """The sentence with some pieces replaced."""
        return "".join(changes.get(i, piece) for i, piece in enumerate(self.pieces))

    def look(self, variants: Sequence[Mapping[int, str]]) -> list[tuple[float, bool]]:
        """Answers on several changed sentences."""
        texts = [self.text(changes) for changes in variants]
        new = [text for text in dict.fromkeys(texts) if text not in self.seen]
        self.seen.update(zip(new, self.ask(new), strict=True) if new else ())
        return [self.seen[text] for text in texts]

    def saliency(self, whole: float) -> dict[int, float]:
        """What the right verdict loses when a word is left out, [W]."""
        found = self.look([{i: ""} for i in self.words])
        return {i: whole - p for i, (p, _) in zip(self.words, found, strict=True)}


def deepwordbug(search: Search, _synonyms: Mapping[str, Sequence[str]], key: str) -> dict[int, str]:
    """The changes, as piece -> text; it stops when the verdict turns or EDITS letters are changed."""
    ((best, _),) = search.look([{}])
    importance = search.saliency(best)
    changes: dict[int, str] = {}
    spent = 0
    for i in sorted(search.words, key=lambda i: (-importance[i], i)):
        options = typos(search.pieces[i], random.Random(f"{key}/{i}"))
        options = [(word, cost) for word, cost in options if spent + cost <= EDITS]
        if not options:
            continue
        found = search.look([changes | {i: word} for word, _ in options])
        at = min(range(len(options)), key=lambda n: found[n][0])
        if found[at][0] >= best:
            continue
        best = found[at][0]
        changes[i], spent = options[at][0], spent + options[at][1]
        if not found[at][1]:
            break
    return changes


def typos(word: str, rng: random.Random) -> list[tuple[str, int]]:
    """Two letters swapped, one hit beside its key, one left out, one put in: each with its edit distance. Not at the first letter."""
    if len(word) < 3:
        return []
    at = rng.randrange(1, len(word) - 1)
    letter = word[at]
    near = rng.choice(KEYBOARD.get(letter.lower(), "x"))
    made = {
        word[:at] + word[at + 1] + letter + word[at + 2 :]: 2,
        word[:at] + near + word[at + 1 :]: 1,
        word[:at] + word[at + 1 :]: 1,
        word[:at] + near + word[at:]: 1,
    }
    return [(text, cost) for text, cost in made.items() if text != word]


def pwws(search: Search, synonyms: Mapping[str, Sequence[str]], _key: str) -> dict[int, str]:
    """The changes, as piece -> text; it stops when the verdict turns or every word with a synonym is replaced."""
    ((whole, _),) = search.look([{}])
    options = {i: [cased(word, search.pieces[i]) for word in synonyms.get(search.pieces[i].lower(), ())] for i in search.words}  # fmt: skip
    options = {i: words for i, words in options.items() if words}
    if not options:
        return {}
    saliency = search.saliency(whole)
    most = max(saliency.values())
    total = sum(math.exp(value - most) for value in saliency.values())
    found = iter(search.look([{i: word} for i, words in options.items() for word in words]))
    chosen: dict[int, tuple[float, str]] = {}
    for i, words in options.items():
        p, word = min((next(found)[0], word) for word in words)
        chosen[i] = ((whole - p) * math.exp(saliency[i] - most) / total, word)
    changes: dict[int, str] = {}
    for i in sorted(chosen, key=lambda i: (-chosen[i][0], i)):
        if chosen[i][0] <= 0:
            break
        changes[i] = chosen[i][1]
        if not search.look([changes])[0][1]:
            break
    return changes


def cased(word: str, like: str) -> str:
    """A word with the capitals of another."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


METHODS: dict[str, Callable[[Search, Mapping[str, Sequence[str]], str], dict[int, str]]] = {
    "deepwordbug": deepwordbug,
    "pwws": pwws,
}


def attack(method: str, row: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
    """Attack one row {sentence, synonyms}; a sentence that is judged wrongly already is left alone.

    Returns:
        {clean, attacked: the verdict is right, before and after; queries: texts asked about; changed, words: how many; text}.
    """
    search = Search.of(row["sentence"], ask)
    ((_, right),) = search.look([{}])
    changes = METHODS[method](search, row["synonyms"], row["sentence"]) if right else {}
    ((_, still),) = search.look([changes])
    words = len(WORD.findall(row["sentence"]))
    return {
        "clean": right, "attacked": still, "queries": len(search.seen), "changed": len(changes), "words": words, "text": search.text(changes),
    }  # fmt: skip
