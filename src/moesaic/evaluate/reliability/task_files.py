"""The tasks of lm_tasks.py as files of an lm-evaluation-harness task folder: one YAML and one JSON-lines file each, and utils.py with the scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moesaic.evaluate import task_yaml
from moesaic.evaluate.reliability import metrics
from moesaic.evaluate.reliability.lm_tasks import Made
from moesaic.evaluate.task_yaml import Function

VERSION = 1.0


def write(folder: Path, shown: Path, made: Sequence[Made], answer_tokens: int) -> dict[str, dict[str, Any]]:
    """Fill a new folder; returns task -> facts.

    Args:
        shown: the folder as lm-eval will find it from the working directory it runs in.
    """
    (folder / "data").mkdir(parents=True)
    (folder / "utils.py").write_text(Path(metrics.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    for task, _, rows in made:
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        (folder / "data" / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
        config = _config(task, rows[0]["form"], f"{shown.as_posix()}/data/{task}.jsonl", answer_tokens)
        (folder / f"{task}.yaml").write_text(task_yaml.text(config), encoding="utf-8")
    known = {task: facts for task, facts, _ in made}
    for facts in known.values():
        # The standard set may be one that cannot be had.
        if facts.get("against") not in known:
            facts.pop("against", None)
    return known


def _config(task: str, form: str, data: str, answer_tokens: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "process_results": Function("utils.process_results"),
    }
    if form in ("refusal", "answer"):
        until = ["\n\n\n", "### Instruction:"] if form == "refusal" else ["\n"]
        config |= {
            "output_type": "generate_until",
            "doc_to_target": "",
            "generation_kwargs": {
                "until": until,
                "max_gen_toks": answer_tokens if form == "refusal" else 16,
                "do_sample": False,
            },
        }
        names = ["refusal"] if form == "refusal" else ["exact"]
    else:
        config |= {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
        names = ["acc"] if form == "truth" else ["acc", "confidence", "brier", "ece"]
    down = ("brier", "ece")
    config["metric_list"] = [
        {
            "metric": name,
            "aggregation": Function("utils.ece") if name == "ece" else "mean",
            "higher_is_better": name not in down,
        }
        for name in names
    ]
    return config | {"metadata": {"version": VERSION}}
