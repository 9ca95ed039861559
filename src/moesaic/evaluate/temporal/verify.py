"""Is a free-text answer to a question about time right? Exact comparison of parsed values; several ways to write each.

Plain Python without imports of ours: the evaluation copies this file into the lm-eval task folder, where it runs by itself.

How an answer is found in a text: what stands after the last `answer is`, `Answer:`, `####` or in the last \\boxed{}; without any, a letter that
the first line is or begins with, or else the last line (that has a value). Two different values or letters in it are no answer. A text that hedges ("A or B") is never right.
"""

import re
from typing import Any

from moesaic.evaluate.temporal.values import (
    DURATION,
    UNIT,
    kind_of,
    normal_words,
    single_unit,
    units,
    value_of,
    values,
)

LETTERS = "ABCDEFGHIJ"
ALTERNATIVES = " | "
"""Between several gold answers of a published set, each of them right."""

LABELS = (
    {"entailment", "neutral", "contradiction"},
    {"yes", "no"},
    {"before", "after", "immediately before", "immediately after", "overlaps the start of", "overlaps the end of",
     "begins together with but ends before", "begins together with but ends after", "happens during", "contains",
     "ends together with but begins after", "ends together with but begins before"},
)  # fmt: skip
"""Closed sets of answers: another member in the same text makes it no answer."""

MARKER = re.compile(
    r"(?:\b(?:final|correct|right|best|my)\s+)?\b(?:answer|choice|option)\b(?:\s+(?:would|should|must))?\s*(?:is\b|be\b|:|=)\s*"
    r"|####\s*|\\boxed\{",
    re.IGNORECASE,
)
FOLLOWS = r"(?=$|\s*[,;()]|\s*\.(?!\w\.)|\s*[\-\u2013](?!\w)|\s+(?:because|since|as|or|and)\b|/|\s+is\s+(?:the\s+)?(?:correct|right|true|best)\b)"
"""What stands after a letter that is an answer: `A, because`, but not `A week` or `A.M.`."""
FIRST = re.compile(rf"[(\[]([{LETTERS}a-j])[)\]]|([{LETTERS}])(?:[).:](?=\s|$)|{FOLLOWS})|([a-j])[).:]*$")
"""A line that is a letter or begins with one."""
DENIED = re.compile(r"\s*not\b", re.IGNORECASE)
FORMS = {
    "datetime": "Answer with time and date, such as 14:05 on March 5, 2024.",
    "date": "Answer with a date, such as March 5, 2024.",
    "month-year": "Answer with month and year, such as May 2024.",
    "clock": "Answer with a time, such as 14:05.",
    "frequency": "Answer with how often, such as twice a week.",
    "duration": "Answer with an amount of time, such as 2 hours 5 minutes.",
    "weekday": "Answer with a day of the week.",
    "month": "Answer with a month.",
    "number": "Answer with a number.",
    "text": "Answer in a few words.",
}
"""What the prompt says about the form of a short answer."""
OPEN_FORMS = (
    (
        re.compile(r"\bare they equally long\?$"),
        "Answer with the amount of time, or with: they are equally long.",
    ),
    (re.compile(r"\banswer unanswerable\b"), "Answer in a few words."),
)
"""The same where right answers have different forms, by the question: the form of this one's would give it away."""
AHEAD = re.compile(
    rf"(.+?)\b(?:is|are|was|were|be|comes?|falls?)\s+(?:exactly\s+|just\s+)?(?:{DURATION.pattern})\s+(?:after|before|from|past|later\s+than|earlier\s+than)\b",
    re.IGNORECASE,
)
"""A sentence that begins with its answer: "February 4 is 30 days after January 5"."""
ASKED_UNIT = re.compile(rf"\bhow many ({UNIT})\b", re.IGNORECASE)

# ---------------------------------------------------------------- the functions that the project calls


def prompt(item: Any) -> str:
    """The question, the choices with their letters, and how to answer. Evaluation adds a line `Answer:`; chat models get it as it is."""
    if item.choices:
        lines = [f"({name}) {choice}" for name, choice in zip(LETTERS, item.choices, strict=False)]
        return "\n".join(
            [f"Question: {item.question}", *lines, "Answer with the letter of the right choice."]
        )
    for asked, form in OPEN_FORMS:
        if asked.search(item.question):
            return f"Question: {item.question}\n{form}"
    gold = item.answer.split(ALTERNATIVES)[0]
    kind = kind_of(gold)
    form = FORMS[kind]
    if kind == "clock" and re.search("[ap]m", gold, re.IGNORECASE):
        form = "Answer with a time, such as 7:05 AM."
    if kind == "date" and values("date", gold)[0][0] is None:
        form = "Answer with month and day, such as March 5."
    return f"Question: {item.question}\n{form}"


def verify(item: Any, text: str) -> bool:
    """True when the text's last explicit answer is the item's (moesaic's Item, or anything with answer and choices)."""
    return grade(item.answer, list(item.choices), text, item.question)


def grade(answer: str, choices: list[str], text: str, question: str = "") -> bool:
    """The same from the bare fields; `answer` is a letter when there are choices."""
    if choices:
        return letter(text, choices) == answer
    return any(short(gold, text, question) for gold in answer.split(ALTERNATIVES))


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's hook for one generated answer."""
    return {"acc": float(grade(doc["answer"], doc["choices"], results[0], doc["prompt"]))}


# ---------------------------------------------------------------- multiple choice


def letter(text: str, choices: list[str]) -> str | None:
    """The letter that the text gives as its answer; None when it gives none, or two different ones."""
    text = _after_thinking(text)
    marked = _marked(text)
    told = marked if marked is not None else _opening(text, len(choices))
    span = told if told is not None else text
    if DENIED.match(span):
        return None
    # Without the choices' own texts, in which an initial ("John F. Kennedy") is no letter.
    bare = span
    for choice in sorted(choices, key=len, reverse=True):
        if len(choice) > 1:
            bare = re.sub(rf"(?<!\w){re.escape(choice)}(?!\w)", "...", bare, flags=re.IGNORECASE)
    found = _letters(bare, len(choices), told is not None)
    if len(found) > 1:
        return None
    named = _named(span, choices)
    if found:
        (only,) = found
        # "(B) 15:30" where 15:30 is choice C answers twice; "(H)" names no choice.
        if only not in LETTERS[: len(choices)]:
            return None
        rest = named - {only} if only not in named else set()
        return None if rest else only
    if marked is None and len(named) != 1:
        named = _named(_last_line(text), choices)
    return named.pop() if len(named) == 1 else None


def _letters(span: str, count: int, marked: bool) -> set[str]:
    """Letters that stand as a choice's name: alone, in brackets, before a full stop or colon, or after `option`."""
    allowed = LETTERS[:count]
    bare = _bare(span)
    if re.fullmatch(rf"[(\[]?([{allowed}{allowed.lower()}])[)\].:]*", bare):
        return {bare.strip("()[].: ").upper()}
    found = set(re.findall(rf"[(\[]([{LETTERS}{allowed.lower()}])[)\]]", bare))
    found |= set(re.findall(rf"(?:^|[\s,;])([{allowed}])[).:](?=\s|$)", bare))
    found |= set(re.findall(rf"\b(?:option|choice|answer)\s+([{allowed}])\b", bare, re.IGNORECASE))
    if marked:
        # "the answer is A, because" but not "the answer is A week".
        follows = re.match(rf"([{allowed}]){FOLLOWS}", bare)
        if follows:
            found.add(follows[1])
    # Whatever form the first one has: "A or B", "A/B", "A and B" name two.
    for pair in re.findall(rf"\b([{allowed}])\s*(?:/|,|\bor\b|\band\b)\s*[(\[]?([{allowed}])\b", bare):
        if found & set(pair):
            found |= set(pair)
    return {item.upper() for item in found}


def _named(span: str, choices: list[str]) -> set[str]:
    """Choices whose own text, or value, the span gives."""
    plain = normal_words(_statement(span))
    exact = {LETTERS[i] for i, choice in enumerate(choices) if normal_words(choice) == plain}
    if exact:
        return exact
    kinds = {kind_of(choice) for choice in choices}
    if len(kinds) == 1 and kinds != {"text"}:
        found = set(values(kinds.pop(), span))
        return {LETTERS[i] for i, choice in enumerate(choices) if value_of(choice) in found}
    # A choice that is part of another choice counts only where the longer one does not stand.
    whole, found_texts = f" {normal_words(span)} ", set()
    for i in sorted(range(len(choices)), key=lambda i: -len(choices[i])):
        words = f" {normal_words(choices[i])} "
        if words.strip() and words in whole:
            found_texts.add(LETTERS[i])
            whole = whole.replace(words, " | ")
    return found_texts


# ---------------------------------------------------------------- short answers


def short(gold: str, text: str, question: str = "") -> bool:
    """Does the text's answer equal the gold one? A question that asks how many of a unit wants that unit: "How many hours are 2 days?" is not answered by "2 days"."""
    text = _after_thinking(text)
    marked = _marked(text)
    kind = kind_of(gold)
    span = marked if marked is not None else _last_line(text, kind)
    if DENIED.match(span):
        return False
    if kind == "text":
        return _same_words(gold, span)
    want = value_of(gold)
    found = values(kind, span)
    if len(set(found)) > 1 and marked is None:
        # "14:30 plus 90 minutes is 16:00": what stands after the last verb or sign.
        tail = re.split(
            r"\b(?:is|are|was|were|be|equals|becomes|gives)\b|=|→|->|:\s", span, flags=re.IGNORECASE
        )[-1]
        # "9 days is longer than 85 hours": what is compared, and not what it is compared with.
        front = re.split(r"\b(?:longer|shorter|more|less|later|earlier)\s+than\b", span, flags=re.IGNORECASE)[
            0
        ]
        ahead = AHEAD.match(span) if kind != "duration" else None
        found = values(kind, ahead[1] if ahead else front if front != span else tail)
    if not found and kind == "duration" and single_unit(gold):
        # The question asked for a number of such units.
        numbers = set(values("number", span))
        count = values("number", gold)
        return not values("duration", span) and numbers == set(count)
    asked = ASKED_UNIT.search(question)
    if kind == "duration" and asked and units(span) and not units(f"1 {asked[1]}") & units(span):
        return False
    return bool(found) and set(found) == {want}


def _same_words(gold: str, span: str) -> bool:
    want, got = normal_words(gold), normal_words(_statement(span))
    for labels in LABELS:
        if want in labels:
            whole, seen = f" {got} ", set()
            for label in sorted(labels, key=len, reverse=True):
                if f" {label} " in whole:
                    seen.add(label)
                    whole = whole.replace(f" {label} ", " | ")
            return seen == {want} and not re.search(r"\b(?:not|neither|nor)\b", whole)
    if want.startswith("they "):
        # "equally long", "both are equally long"
        got = re.sub(
            r"^(?:(?:they|both|two|these|times|durations|amounts)\s+)*(?:are\s+)?(?:both\s+)?",
            "they are ",
            got,
        )
    if got == want:
        return True
    # "Ben waters the plants most often.", "the concert came first"
    verb = r"(?:[a-z]{2,}s|[a-z]+ed|are|came|took|went|had|did|began|ran)"
    others = r"\b(?:or|not|never|nor|as often as|both|unless)\b"
    return re.match(rf"{re.escape(want)} {verb}\b", got) is not None and not re.search(others, got)


# ---------------------------------------------------------------- text


def _after_thinking(text: str) -> str:
    return text.rpartition("</think>")[2].strip()


def _marked(text: str) -> str | None:
    """What stands after the last marker, to the end of its line (or of the next, when the marker ends its line)."""
    found = [m for m in MARKER.finditer(text) if text[m.end() :].strip()]
    if not found:
        return None
    rest = text[found[-1].end() :].lstrip()
    return rest.splitlines()[0].rstrip("}") if rest else None


def _opening(text: str, count: int) -> str | None:
    """The first line, up to its reason, when it is a letter or begins with one; None when it does not, or when it begins a list of the choices."""
    lines = [line for line in map(_bare, text.splitlines()) if line]
    first, second = (FIRST.match(line) for line in (*lines, "", "")[:2])
    if first is None or _name(first) not in LETTERS[:count]:
        return None
    alone = [match is not None and not match.string[match.end() :].strip(".:)]") for match in (first, second)]
    if second is not None and _name(second) != _name(first) and alone[0] == alone[1]:
        return None
    return re.split(r"\b(?:because|since)\b", lines[0], flags=re.IGNORECASE)[0]


def _name(match: re.Match[str]) -> str:
    return match[match.lastindex or 0].upper()


def _bare(span: str) -> str:
    """Without Markdown and TeX around the words."""
    return re.sub(r"[*_`$]|\\text\{|\\mathrm\{", "", span).strip().rstrip("}").strip()


def _last_line(text: str, kind: str = "text") -> str:
    """The last line; for a kind of value the last one that has such a value, since a reason may follow the answer."""
    lines = [line for line in text.splitlines() if line.strip()]
    valued = [line for line in lines if kind != "text" and values(kind, line)]
    return (valued or lines or [""])[-1]


def _statement(span: str) -> str:
    """A span without a leading letter in brackets or `it is`."""
    span = re.sub(r"^\s*[(\[]?[A-J][)\].:]+\s*", "", span)
    return re.sub(r"^\s*(?:it|that|this|which)(?:\s+is|'s)\s+", "", span, flags=re.IGNORECASE)
