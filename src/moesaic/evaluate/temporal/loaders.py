"""Published sets from a folder that the user gives: TRAM's CSV files, TimeBench's JSON lines, MCTACO's table. They are never downloaded.

Layouts as published (TRAM cca694f, TimeBench e7fd672, MCTACO 0ba9b79):
  {task}_mcq.csv         [Premise|Story,] Question, [Hypothesis,] Option A ... Option D, Answer (a letter), Category or Source
  {task}_saq.csv         Question, Answer (free text), Category
  {task}_shots_mcq.csv   as _mcq, five rows per category; {task}_shots_saq.csv likewise
  {set}/*_timebench.jsonl  context, options, labels (yes or no each)[, question]; or question, context, answer (a list)
  dev_3783.tsv, test_9442.tsv  sentence, question, answer, label (yes or no), category; tab-separated, no header
TRAM's first release names its files {task}.csv and {task}_shots.csv; these are read too.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesaic.errors import InputError
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.make import Split
from moesaic.evaluate.temporal.tasks import TASKS, Kind, kind_of
from moesaic.evaluate.temporal.verify import ALTERNATIVES, LETTERS

CONTEXT = {"nli": ("Premise", "Hypothesis"), "causality": ("Premise",), "storytelling": ("Story",)}
"""Columns without which TRAM's questions cannot be answered: NLI's Question is the same in all rows."""
NLI_QUESTION = "Is the hypothesis an entailment of the premise, a contradiction, or neutral?"
MCTACO_COLUMNS = ("sentence", "question", "answer", "label", "category")


# ---------------------------------------------------------------- TRAM


def tram(folder: Path, task: str, form: str = "choice", shots: bool = False) -> list[Item]:
    """The items of one of the 38 tasks.

    Args:
        form: choice (_mcq files) or short (_saq files). shots: the five development rows of each category instead.

    Raises:
        InputError: a missing file or column (named), an answer that is not among the options, or a category that is not known.
    """
    spec = TASKS[task]
    path, rows = _table(folder, spec.file, "mcq" if form == "choice" else "saq", shots)
    items = []
    for number, row in rows:
        where = f"{path}, row {number}"
        if spec.category is not None and _category(row, spec.file, where) != task:
            continue
        question = _question(row, spec.file, where)
        name = f"tram-{path.stem}-{number:06d}"
        split: Split = "validation" if shots else "test"
        answer = _cell(row, "Answer", where)
        if form == "short":
            items.append(Item(name, task, spec.kind, question, answer, (), split))
            continue
        choices = _options(row, where)
        letter = answer.strip("(). ").upper()
        if len(letter) != 1 or letter not in LETTERS[: len(choices)]:
            raise InputError(f"{where}: the answer '{answer}' is none of the {len(choices)} options' letters")
        items.append(Item(name, task, spec.kind, question, letter, choices, split))
    return items


def tram_forms(folder: Path, task: str, shots: bool = False) -> list[str]:
    """The forms in which a folder has a task's file. Args: shots: the file of its development rows."""
    names = {"choice": "mcq", "short": "saq"}
    return [form for form, kind in names.items() if _find(folder, TASKS[task].file, kind, shots) is not None]


def _find(folder: Path, file: str, kind: str, shots: bool) -> Path | None:
    middle = "_shots" if shots else ""
    names = [f"{file}{middle}_{kind}.csv"] + [f"{file}{middle}.csv"] * (kind == "mcq")
    if file == "nli":
        names += [f"temporal_{name}" for name in names]
    return next((path for name in names for path in sorted(folder.rglob(name))), None)


def _table(
    folder: Path, file: str, kind: str, shots: bool
) -> tuple[Path, Iterator[tuple[int, dict[str, str]]]]:
    if not folder.is_dir():
        raise InputError(f"data.temporal.tram: {folder} is not a folder; unpack TRAM's zip files into one")
    path = _find(folder, file, kind, shots)
    if path is None:
        middle = "_shots" if shots else ""
        raise InputError(
            f"data.temporal.tram: no {file}{middle}_{kind}.csv in {folder} or below; unpack TRAM's {file}.zip there"
        )
    return path, _csv(path)


def _csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for number, row in enumerate(reader, 1):
                yield (
                    number,
                    {
                        (key or "").strip(): value or ""
                        for key, value in row.items()
                        if isinstance(value, str) or value is None
                    },
                )
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, line {reader.line_num}: damaged ({error}); unpack it again") from error


def _cell(row: dict[str, str], column: str, where: str) -> str:
    if column not in row:
        raise InputError(f"{where}: no column '{column}'; the columns are {', '.join(row)}")
    return row[column].strip()


def _question(row: dict[str, str], file: str, where: str) -> str:
    parts = {name: _cell(row, name, where) for name in CONTEXT.get(file, ())}
    question = row.get("Question", "").strip() if file == "nli" else _cell(row, "Question", where)
    if file == "nli":
        return f"Premise: {parts['Premise']} Hypothesis: {parts['Hypothesis']} {question or NLI_QUESTION}"
    lead = " ".join(f"{name}: {text}" for name, text in parts.items())
    return f"{lead} {question}".strip()


def _options(row: dict[str, str], where: str) -> tuple[str, ...]:
    for name in ("Option A", "Option B"):
        _cell(row, name, where)
    return tuple(text.strip() for name in LETTERS if (text := row.get(f"Option {name}", "")).strip())


def _category(row: dict[str, str], file: str, where: str) -> str:
    """The task that a row's Category names, however it is hyphenated, abbreviated or spaced."""
    text = _letters(_cell(row, "Category", where))
    tasks = {
        name: _letters(task.category) for name, task in TASKS.items() if task.file == file and task.category
    }
    exact = [name for name, known in tasks.items() if known == text]
    # "duration-facts", "Arithmetic: Hour Adjustment (24h)": a longer name ends with ours.
    ends = [name for name, known in tasks.items() if text.endswith(known)]
    best = exact or sorted(ends, key=lambda name: -len(tasks[name]))[:1]
    if not best:
        known = ", ".join(str(TASKS[name].category) for name in tasks)
        raise InputError(f"{where}: unknown Category '{row['Category']}'; known in {file}: {known}")
    return best[0]


def _letters(text: str | None) -> str:
    words = re.sub(r"[^a-z0-9]+", " ", (text or "").lower())
    for long, brief in (("short term", "st"), ("mid term", "mt"), ("medium term", "mt"), ("long term", "lt"), ("common sense", "commonsense"),
                        ("24 hour", "24h"), ("12 hour", "12h"), ("analogy", "analogy")):  # fmt: skip
        words = words.replace(long, brief)
    return words.replace(" ", "").removesuffix("inference")


# ---------------------------------------------------------------- TimeBench and MCTACO


def timebench(folder: Path) -> list[Item]:
    """The subsets with options (each option asked for itself: right or not) and those with a list of answers.

    Tasks are timebench_{set}, after the folder. Raises InputError for a missing field, with file, line and name.
    """
    paths = sorted(folder.rglob("*_timebench*.jsonl"))
    if not paths:
        raise InputError(
            f"data.temporal.timebench: no *_timebench.jsonl in {folder} or below; give the folder TimeBench-subset-7553"
        )
    items: list[Item] = []
    for path in paths:
        task = f"timebench_{re.sub(r'[^a-z0-9]', '', path.parent.name.lower())}"
        for number, row in _jsonl(path):
            where, name = f"{path}, line {number}", f"{task}-{path.stem}-{number:05d}"
            items += _timebench(row, task, name, where)
    return items


def _timebench(row: dict[str, Any], task: str, name: str, where: str) -> Iterator[Item]:
    if "options" in row or "labels" in row:
        options, labels = _field(row, "options", where), _field(row, "labels", where)
        context = str(_field(row, "context", where)).strip()
        if len(options) != len(labels) or not set(labels) <= {"yes", "no"}:
            raise InputError(
                f"{where}: field 'labels' must hold yes or no for each of the {len(options)} options"
            )
        asked = str(row.get("question") or "").strip()
        if not asked and "<MASK>" not in context:
            raise InputError(f"{where}: no field 'question'; the fields are {', '.join(row)}")
        for i, (option, label) in enumerate(zip(options, labels, strict=True)):
            head = f"{context}\n{asked}\n" if asked else f"{context}\nWhat stands for <MASK>? "
            yield _yes_no(
                f"{name}-{i}",
                task,
                f"{head}Is this a plausible answer: {str(option).strip()}?",
                str(label),
                name,
            )
        return
    question, context = _field(row, "question", where), _field(row, "context", where)
    answers = _field(row, "answer", where)
    found = [str(answer).strip() for answer in (answers if isinstance(answers, list) else [answers])]
    gold = ALTERNATIVES.join(dict.fromkeys(answer or "unanswerable" for answer in found)) or "unanswerable"
    asked = f"{context}\nIf the text does not say, answer unanswerable. {question}"
    yield Item(name, task, kind_of(task), asked, gold)


def mctaco(folder: Path) -> list[Item]:
    """Every pair of question and candidate answer, as published: is the answer plausible? Tasks are mctaco_{category}; dev rows are validation.

    Raises:
        InputError: no file, or a row without one of the five columns.
    """
    paths = sorted({*folder.rglob("dev_*.tsv"), *folder.rglob("test_*.tsv")})
    if not paths:
        raise InputError(
            f"data.temporal.mctaco: no dev_*.tsv or test_*.tsv in {folder} or below; give the folder of MCTACO's data"
        )
    items = []
    for path in paths:
        split: Split = "validation" if path.name.startswith("dev") else "test"
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line:
                continue
            cells = line.split("\t")
            if len(cells) != len(MCTACO_COLUMNS):
                missing = MCTACO_COLUMNS[len(cells)] if len(cells) < len(MCTACO_COLUMNS) else "none"
                raise InputError(
                    f"{path}, line {number}: {len(cells)} columns instead of {', '.join(MCTACO_COLUMNS)} (missing: {missing})"
                )
            row = dict(zip(MCTACO_COLUMNS, (cell.strip() for cell in cells), strict=True))
            if row["label"] not in ("yes", "no"):
                raise InputError(f"{path}, line {number}: column 'label' is '{row['label']}', not yes or no")
            task = f"mctaco_{re.sub(r'[^a-z]+', '_', row['category'].lower()).strip('_')}"
            question = f"{row['sentence']}\n{row['question']}\nIs this a plausible answer: {row['answer']}?"
            whose = hashlib.blake2b(
                f"{row['sentence']}\n{row['question']}".encode(), digest_size=8
            ).hexdigest()
            name = f"mctaco-{path.stem}-{number:05d}"
            items.append(_yes_no(name, task, question, row["label"], f"mctaco-{whose}", split))
    return items


def _yes_no(name: str, task: str, question: str, label: str, question_id: str, split: Split = "test") -> Item:
    kind: Kind = kind_of(task)
    return Item(name, task, kind, question, "A" if label == "yes" else "B", ("yes", "no"), split, question_id)


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: damaged ({error}); fetch it again") from error
        yield number, row


def _field(row: dict[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise InputError(f"{where}: no field '{name}'; the fields are {', '.join(row)}")
    return row[name]
