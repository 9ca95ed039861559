"""The temporal items as an ordinary lm-evaluation-harness task folder: it runs by `lm_eval --include_path` with no code of ours installed.

One task per temporal task and form: `temporal_{task}` (multiple choice: the likelihoods of the letters are compared) and
`temporal_{task}_short` (the answer is generated and checked by temporal_verify.py, a copy of verify.py). Groups: temporal_math_time,
temporal_pure_time, temporal_out_of_domain, each also with _short. Zero-shot, or few-shot by --num_fewshot where there are examples.
"""

import ast
import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.evaluate import kept, task_yaml
from moesaic.evaluate.temporal import values, verify
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.make import normal
from moesaic.evaluate.temporal.tasks import TASKS
from moesaic.flow import files

FEWSHOT = 20
"""Examples to draw few-shot prompts from; validation items first, then training items. Test items are never shown."""
GROUPS = ("math-time", "pure-time", "out-of-domain")
CHECKER = "temporal_verify"


def name_of(task: str, form: str) -> str:
    """A task's name in lm-eval."""
    return f"temporal_{task}" + ("_short" if form == "short" else "")


def group_of(task: str) -> str:
    """math-time, pure-time, or out-of-domain for sets of other papers."""
    return TASKS[task].kind if task in TASKS else "out-of-domain"


def form_of(item: Item) -> str:
    """choice or short."""
    return "choice" if item.choices else "short"


def write(folder: Path, shown: Path, items: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    """Write the folder.

    Args:
        folder: where to write. shown: the folder as lm-eval will find it from the working directory it runs in.
        items: by split.

    Returns:
        lm-eval's name -> {task, form, group, n, chance}.
    """
    (folder / "data").mkdir(parents=True)
    (folder / f"{CHECKER}.py").write_text(checker(), encoding="utf-8")
    found: dict[str, Any] = {}
    for task, form in dict.fromkeys((item.task, form_of(item)) for item in items["test"]):
        mine = {
            split: [i for i in rows if i.task == task and form_of(i) == form] for split, rows in items.items()
        }
        name = name_of(task, form)
        examples = [*mine["validation"], *mine["train"][: max(0, FEWSHOT - len(mine["validation"]))]]
        data = {"test": mine["test"]} | ({"validation": examples} if examples else {})
        for split, rows in data.items():
            lines = (json.dumps(_row(item), ensure_ascii=False, sort_keys=True) + "\n" for item in rows)
            (folder / "data" / f"{name}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(_config(name, form, data, shown), encoding="utf-8")
        chance = _chance(mine["test"])
        found[name] = {
            "task": task,
            "form": form,
            "group": group_of(task),
            "n": len(mine["test"]),
            "chance": round(chance, 6),
        }
    for group in GROUPS:
        for form in ("choice", "short"):
            members = [name for name, item in found.items() if (item["group"], item["form"]) == (group, form)]
            if members:
                name = name_of(group.replace("-", "_"), form)
                (folder / f"{name}.yaml").write_text(_group(name, members), encoding="utf-8")
    return found


def examples(folder: Path, name: str) -> int:
    """How many examples a task's prompts may be given; `folder` is the one that was written."""
    path = folder / "data" / f"{name}.validation.jsonl"
    return len(files.json_lines(path)) if path.is_file() else 0


def checker() -> str:
    """The source of values.py and verify.py as one file that imports nothing of ours."""
    parts = []
    for module in (values, verify):
        source = inspect.getsource(module)
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moesaic"):
                lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno + 1)
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _row(item: Item) -> dict[str, Any]:
    letters = list(verify.LETTERS[: len(item.choices)])
    row: dict[str, Any] = {
        "id": item.id,
        "prompt": verify.prompt(item),
        "answer": item.answer,
        "choices": list(item.choices),
    }
    row |= {"letters": letters, "gold": letters.index(item.answer)} if letters else {}
    return row | ({kept.QUESTION: item.question_id} if item.question_id else {})


def _config(name: str, form: str, data: Mapping[str, Any], shown: Path) -> str:
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: f"{shown.as_posix()}/data/{name}.{split}.jsonl" for split in data}
        },
        "test_split": "test",
    }
    if "validation" in data:
        config |= {"validation_split": "validation", "fewshot_split": "validation"}
    else:
        # lm-eval would draw examples from the test items, and show an item its own answer.
        config["num_fewshot"] = 0
    config["doc_to_text"] = "{{prompt}}\nAnswer:"
    if form == "choice":
        config |= {"output_type": "multiple_choice", "doc_to_choice": "letters", "doc_to_target": "gold"}
    else:
        config |= {
            "output_type": "generate_until",
            "doc_to_target": "answer",
            "generation_kwargs": {"until": ["\n\n", "\nQuestion:"], "max_gen_toks": 48, "do_sample": False},
        }
    config |= {
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    if form == "short":
        config["process_results"] = task_yaml.Function(f"{CHECKER}.process_results")
    return task_yaml.text(config)


def _group(name: str, members: list[str]) -> str:
    config = {
        "group": name,
        "task": members,
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}],
        "metadata": {"version": 1.0},
    }
    return task_yaml.text(config)


def _chance(items: Sequence[Item]) -> float:
    """Choice: the mean of 1 / number of choices. Short: what the best constant answer gets."""
    if items[0].choices:
        return sum(1 / len(item.choices) for item in items) / len(items)
    golds = Counter(values.value_of(item.answer) or normal(item.answer) for item in items)
    return max(golds.values()) / len(items)
