"""Texts in another style with the same meaning, in the manner of DecodingTrust (Wang et al. 2023, section 5) but made by rules.

DecodingTrust has sentences rewritten by a style-transfer model; what it publishes is read from data.reliability.folder. These
transforms are ours: word lists and spelling, no model, the same result for the same seed.
"""

import random
import re
from collections.abc import Callable

KEYBOARD = {
    "a": "qsz", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk", "k": "jl", "l": "k",
    "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc",
    "y": "tu", "z": "x",
}  # fmt: skip
TYPO_SHARE = 0.2
"""Share of the words of four and more letters that get one typo."""
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
ARCHAIC = {
    "you": "thou", "your": "thy", "yours": "thine", "are": "art", "has": "hath", "does": "doth", "do": "dost", "have": "hast",
    "before": "ere", "often": "oft", "over": "o'er", "ever": "e'er", "never": "ne'er", "it's": "'tis", "perhaps": "perchance",
    "maybe": "mayhap", "here": "hither", "there": "thither", "where": "whither", "why": "wherefore", "nothing": "naught",
    "something": "aught", "yes": "aye", "no": "nay", "very": "most", "between": "betwixt", "among": "amongst", "while": "whilst",
    "movie": "play", "film": "play", "director": "playwright", "kids": "younglings", "says": "quoth", "quickly": "anon",
}  # fmt: skip
CHATTY = {
    "you": "u", "your": "ur", "are": "r", "and": "&", "to": "2", "for": "4", "before": "b4", "because": "cuz", "with": "w/",
    "without": "w/o", "people": "ppl", "please": "pls", "though": "tho", "through": "thru", "really": "rly", "about": "abt",
    "be": "b", "see": "c", "why": "y", "great": "gr8", "tomorrow": "tmrw", "something": "smth",
}  # fmt: skip


def typos(text: str, rng: random.Random) -> str:
    """One typo in a fifth of the longer words: two letters swapped, one dropped, doubled, or hit beside its key. At least one word."""
    words = [match for match in WORD.finditer(text) if len(match[0]) >= 4]
    if not words:
        return text
    count = max(1, round(TYPO_SHARE * len(words)))
    for match in sorted(rng.sample(words, count), key=lambda item: -item.start()):
        text = text[: match.start()] + _typo(match[0], rng) + text[match.end() :]
    return text


def _typo(word: str, rng: random.Random) -> str:
    """The first letter stays, as in most human typos."""
    at = rng.randrange(1, len(word) - 1)
    kind = rng.choice(("swap", "drop", "double", "key"))
    letter = word[at]
    if kind == "swap" and letter != word[at + 1]:
        return word[:at] + word[at + 1] + letter + word[at + 2 :]
    if kind == "key" and letter.lower() in KEYBOARD:
        return word[:at] + rng.choice(KEYBOARD[letter.lower()]) + word[at + 1 :]
    if kind == "double":
        return word[:at] + letter + word[at:]
    return word[:at] + word[at + 1 :]


def capitals(text: str, rng: random.Random) -> str:
    """ALL IN CAPITALS."""
    return text.upper()


def shakespeare(text: str, rng: random.Random) -> str:
    """Words of Shakespeare's English in place of ours, word by word."""
    return _replaced(text, ARCHAIC)


def bible(text: str, rng: random.Random) -> str:
    """The same words and a verse's frame."""
    opening = rng.choice(
        ("Verily, I say unto thee: ", "And lo, it is written: ", "And it came to pass that they said, ")
    )
    return opening + _replaced(text, ARCHAIC)


def tweet(text: str, rng: random.Random) -> str:
    """Small letters, chat spelling and a hashtag that says nothing."""
    return _replaced(text.lower(), CHATTY) + rng.choice((" #nowplaying", " #fridaynight", " #mytwocents"))


STYLES: dict[str, Callable[[str, random.Random], str]] = {
    "typos": typos,
    "capitals": capitals,
    "shakespeare": shakespeare,
    "bible": bible,
    "tweet": tweet,
}


def restyle(style: str, text: str, key: str) -> str:
    """A text in a style of STYLES; what is random follows from the key."""
    return STYLES[style](text, random.Random(f"{style}/{key}"))


def _replaced(text: str, words: dict[str, str]) -> str:
    def word(match: re.Match[str]) -> str:
        found = words.get(match[0].lower())
        if found is None:
            return match[0]
        return found[:1].upper() + found[1:] if match[0][0].isupper() else found

    return WORD.sub(word, text)
