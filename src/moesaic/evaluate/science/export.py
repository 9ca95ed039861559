"""Write the suite as a task folder of lm-evaluation-harness: YAML, JSON lines, and `utils.py`, which needs nothing of this package.

lm_eval --model hf --model_args pretrained=MODEL --include_path results/prepare/science/tasks --tasks sciqa_dcf,sciqa_dcf_mc
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moesaic.evaluate import task_yaml
from moesaic.evaluate.science import grade
from moesaic.evaluate.science.generate import SPLITS, Item
from moesaic.evaluate.task_yaml import Function

NAME = "sciqa_dcf"
CHOICE = f"{NAME}_mc"
VERSION = 1.0
LETTERS = ["A", "B", "C", "D"]
NOTE = "Physics of magnetised molecular clouds. Each answer is a number with its unit.\n\n"
LISTED = (
    "Question: {{question}}\n"
    + "".join(f"{letter}. {{{{choices[{i}]}}}}\n" for i, letter in enumerate(LETTERS))
    + "Answer:"
)


def write(
    folder: Path, items: dict[str, list[Item]], train: list[Item], max_tokens: int
) -> dict[str, dict[str, Any]]:
    """Fill a new folder.

    Args:
        items: split -> test items. max_tokens: longest answer of the open questions.

    Returns:
        Task -> group, split, rows and chance (of the open questions: what the best constant answer gets).
    """
    (folder / "data").mkdir(parents=True)
    (folder / "utils.py").write_text(Path(grade.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    _lines(folder / "data/train.jsonl", (training_record(item) for item in train))
    found: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        _lines(folder / f"data/{split}.jsonl", (item.record() for item in items[split]))
        for group, config in ((NAME, open_task(split, max_tokens)), (CHOICE, choice_task(split))):
            _yaml(folder / f"{config['task']}.yaml", config)
            chance = 1 / len(LETTERS) if group == CHOICE else best_constant(items[split])
            found[config["task"]] = {
                "group": group,
                "split": split,
                "rows": len(items[split]),
                "chance": round(chance, 6),
            }
    for group, metrics in ((NAME, ("acc", "acc_10", "parsed")), (CHOICE, ("acc",))):
        _yaml(
            folder / f"{group}.yaml",
            {
                "group": group,
                "task": [f"{group}_{split}" for split in SPLITS],
                "aggregate_metric_list": [{"metric": metric, "weight_by_size": True} for metric in metrics],
                "metadata": {"version": VERSION},
            },
        )
    return found


def _common(split: str) -> dict[str, Any]:
    return {
        "custom_dataset": Function("utils.load"),
        "dataset_kwargs": {"split": split},
        "training_split": "train",
        "test_split": "test",
        "fewshot_split": "train",
        "description": NOTE,
        "metadata": {"version": VERSION},
    }


def open_task(split: str, max_tokens: int) -> dict[str, Any]:
    """The model writes the answer."""
    return {
        "task": f"{NAME}_{split}",
        **_common(split),
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "process_results": Function("utils.process_results"),
        "generation_kwargs": {
            "until": ["Question:", "\n\n\n"],
            "do_sample": False,
            "max_gen_toks": max_tokens,
        },
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_10", "parsed")
        ],
    }


def choice_task(split: str) -> dict[str, Any]:
    """The letters' likelihoods are compared, as in the harness's MMLU."""
    return {
        "task": f"{CHOICE}_{split}",
        **_common(split),
        "output_type": "multiple_choice",
        "doc_to_text": LISTED,
        "doc_to_choice": LETTERS,
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def training_record(item: Item) -> dict[str, Any]:
    """An item with `instruction`, `input` and `output` too, so that the file is a source of instruction data (format alpaca)."""
    steps = "\n".join(item.steps)
    return item.record() | {
        "instruction": item.question,
        "input": "",
        "output": f"{steps}\nAnswer: {item.answer}",
    }


def best_constant(items: Sequence[Item]) -> float:
    """Largest share of items that one and the same answer (one number with one unit) gets right."""
    logs: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for item in items:
        factor, powers = grade.unit_of(item.unit)
        logs[powers].append(math.log(item.value * factor))
    width = math.log((1 + grade.TOLERANCE) / (1 - grade.TOLERANCE))
    best = 0
    for values in logs.values():
        values.sort()
        start = 0
        for end, value in enumerate(values):
            while value - values[start] > width:
                start += 1
            best = max(best, end - start + 1)
    return best / len(items)


def _lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(record, sort_keys=True) + "\n" for record in records), encoding="utf-8"
    )


def _yaml(path: Path, config: dict[str, Any]) -> None:
    path.write_text(task_yaml.text(config), encoding="utf-8")
