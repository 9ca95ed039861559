"""Evaluation of tasks: ours beside plain lm-eval, the same model, tasks and items, in turns in one process; do the scores agree, and how fast is it?

    for step in dense tasks; do moesaic $step --config config/config.yaml; done
    python benchmarks/evaluate.py
    python benchmarks/evaluate.py --model results/activation/pretrain/model     # an MoE

Plain: lm_eval's own HFLM. Ours: the same with the choices of a question sharing its prompt (moesaic.evaluate.prefix), intervals left out on both sides. Ratios are medians over the
repetitions; continuations per second are of the median.
"""

import argparse
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import machine

from moesaic.evaluate.prefix import SharedPrefixLM
from moesaic.generate import decode
from moesaic.model import load


def main() -> None:
    """Time both, compare the scores, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("results/dense/model"))
    parser.add_argument("--tasks", type=Path, default=Path("results/prepare/tasks"))
    parser.add_argument("--items", type=int, default=24, help="of each task")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluate.json"))
    arguments = parser.parse_args()
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.disable(logging.WARNING)
    model = load.load_model(arguments.model).to(decode.device()).eval()
    tokenizer = load.load_tokenizer(arguments.model)
    names = sorted(path.parent.name for path in arguments.tasks.glob("*/*.yaml"))
    manager = TaskManager(include_path=[str(arguments.tasks)], include_defaults=False)
    makers = {
        "plain lm-eval": lambda: HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=arguments.batch, backend="causal"
        ),
        "ours": lambda: SharedPrefixLM(model, tokenizer, arguments.batch),
    }

    def run(lm: Any) -> tuple[float, dict[str, Any], int]:
        tasks = manager.load(names)
        began = time.perf_counter()
        found = lm_eval.evaluate(lm, tasks, limit=arguments.items, bootstrap_iters=0, log_samples=True)
        took = time.perf_counter() - began
        scores = {
            f"{task}/{metric}": value
            for task, own in found["results"].items()
            for metric, value in own.items()
            if metric.startswith("acc") and "stderr" not in metric
        }
        return took, scores, sum(len(row["resps"]) for rows in found["samples"].values() for row in rows)

    seconds: dict[str, list[float]] = {name: [] for name in makers}
    scores: dict[str, dict[str, Any]] = {}
    count = 0
    for turn in range(arguments.repetitions + 1):  # the first one warms up
        for name, make in makers.items():
            took, scores[name], count = run(make())
            if turn:
                seconds[name].append(took)
    ratios = [plain / own for plain, own in zip(seconds["plain lm-eval"], seconds["ours"], strict=True)]
    differing = {
        key: [own[key] for own in scores.values()] for key in scores["ours"] if len({own[key] for own in scores.values()}) > 1
    }  # fmt: skip
    made = {
        "device": machine.name(), "model": type(model).__name__, "tasks": names, "items": arguments.items,
        "faster": statistics.median(ratios), "range": [min(ratios), max(ratios)], "differing": differing, "scores": scores["ours"],
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(made, indent=1) + "\n")
    print("| | seconds (median) | continuations/s |\n|---|---|---|")
    for name, found in seconds.items():
        middle = statistics.median(found)
        print(f"| {name} | {middle:.1f} | {count / middle:.1f} |")
    agree = "all scores are equal" if not differing else f"scores differ: {differing}"
    print(f"ours is {made['faster']:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times as fast; {agree}")


if __name__ == "__main__":
    main()
