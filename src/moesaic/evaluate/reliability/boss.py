"""Domain shift as in BOSS (Yuan et al. 2023, arXiv 2306.04618): one set is in distribution, the others of its task are shifted.

The authors publish an archive whose `datasets/process` is read from data.reliability.folder as `boss/TASK/SET/test.tsv`: a table with a
head line, Text and Label, or Premise, Hypothesis and Label. Labels: sentiment 0 negative, 1 positive, 2 neutral; toxicity 0 benign, 1
toxic; inference 0 entailment, 1 neutral, 2 contradiction.
"""

import csv
from collections.abc import Iterator, Sequence

from moesaic.data.fetch import File
from moesaic.evaluate.reliability.readers import FromFiles, Row

HOW = "download the authors' archive (github.com/lifan-yuan/OOD_NLP, README), then: mkdir -p FOLDER/boss && cp -r datasets/process/{task} FOLDER/boss/"
IN_DOMAIN = {
    "SentimentAnalysis": "amazon",
    "ToxicDetection": "civil_comments",
    "NaturalLanguageInference": "mnli",
}
"""Task -> its set in distribution (table 1 of the paper)."""
ASKED = {"SentimentAnalysis": "sentiment3", "ToxicDetection": "toxicity", "NaturalLanguageInference": "nli"}
"""Task -> how lm_tasks asks for its label."""
LONGEST = 150
"""Words of a review: longer ones are left out, so that a prompt stays short."""


def files_below(task: str) -> str:
    """The glob of a task's test files."""
    return f"boss/{task}/*/test.tsv"


def how(task: str) -> str:
    """What adds the task's sets."""
    return HOW.format(task=task)


def reader(task: str) -> FromFiles:
    """Rows {sentence or premise and hypothesis, label, domain, ask}; rows without text or label are left out, as the authors do.

    Raises (the reader): ValueError without the set in distribution, or without any other, and for a row that breaks off; KeyError for
    other columns.
    """

    def read(files: Sequence[File]) -> Iterator[Row]:
        names = [file.path.parent.name for file in files]
        if IN_DOMAIN[task] not in names or len(names) < 2:
            raise ValueError(
                f"boss/{task}: sets {', '.join(names)}; {IN_DOMAIN[task]}, which is in distribution, and at least one other are needed"
            )
        for file, name in zip(files, names, strict=True):
            for row in _table(file, "\t"):
                fields = ("Premise", "Hypothesis") if ASKED[task] == "nli" else ("Text",)
                values = [" ".join(row[field].split()) for field in fields]
                label = row["Label"].removesuffix(".0")
                if all(values) and label in ("0", "1", "2"):
                    named = ("premise", "hypothesis") if len(fields) == 2 else ("sentence",)
                    yield dict(zip(named, values, strict=True)) | {
                        "label": int(label), "domain": name, "ask": ASKED[task],
                    }  # fmt: skip

    return read


def critics_and_viewers(files: Sequence[File]) -> Iterator[Row]:
    """Sentences of critics (Rotten Tomatoes, in distribution) and whole reviews of viewers (IMDb, up to LONGEST words): same films, another genre of text."""
    for file in files:
        for row in _table(file, ","):
            domain = {"rotten_tomatoes": "critics", "imdb": "viewers"}[row["source"]]
            words = row["text"].replace("<br />", " ").split()
            if domain == "critics" or len(words) <= LONGEST:
                yield {"sentence": " ".join(words), "label": int(row["label"]), "domain": domain}


def _table(file: File, delimiter: str) -> Iterator[dict[str, str]]:
    """The rows of a table with a head line; fields beyond it are left out. Raises ValueError, with the line, for a row that is too short."""
    with file.path.open(encoding="utf-8", newline="") as text:
        reader = csv.DictReader(text, delimiter=delimiter)
        for row in reader:
            if None in row.values():
                raise ValueError(f"{file.path}, line {reader.line_num}: fewer fields than the head line has")
            yield row
