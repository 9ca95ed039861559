"""Write docs/benchmarks.md from the JSON that the scripts of `make bench` leave in benchmarks/results.

    python benchmarks/page.py

One section for each claim, with its command; a script that has not been run says so. Goals are told as met or missed by the median.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")
PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow", "snakemake", "lm-eval")


def machine() -> str:
    """Processor and cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'unknown processor'}, {os.cpu_count()} cores"


def written(path: Path) -> str:
    """Date of the file's last commit; today when it differs from that."""
    for call in (["git", "diff", "--quiet", "HEAD", "--", str(path)], ["git", "ls-files", "--error-unmatch", str(path)]):  # fmt: skip
        if subprocess.run(call, capture_output=True).returncode:
            return time.strftime("%Y-%m-%d")
    call = ["git", "log", "-1", "--format=%cs", "--", str(path)]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


def spread(value: list[float]) -> str:
    """Median (lowest-highest)."""
    return f"{value[0]:.2f} ({value[1]:.2f}-{value[2]:.2f})"


def table(head: str, rows: list[str]) -> list[str]:
    """A Markdown table."""
    return ["", head, "|" + "---|" * (head.count("|") - 1), *rows, ""]


def told(found: bool) -> str:
    return "met" if found else "**missed**"


def layer(raw: Any) -> list[str]:
    """benchmarks/layer.py; goals by the worse of processor time and wall clock, of few tokens by wall clock: threads that wait spin."""
    rows, same = [], {}
    for row in raw["rows"]:
        key = (row["width"], row["tokens"], row["per_token"], row["experts"], row["routing"], row["pass"])
        kinds = ("of_dense",) if row["pass"] == "forward" else ("of_dense", "of_dense_processor")
        same.setdefault(key, {})[row["candidate"]] = max(row[kind][0] for kind in kinds)
        shape = f"{row['width']}, {row['tokens']} tokens, {row['per_token']} of {row['experts']}, {row['routing']}"
        rows.append(
            f"| {shape} | {row['pass']} | {row['candidate']} | {spread(row['of_dense_processor'])} | {spread(row['of_dense'])} |"
        )
    lines = table("| layer | pass | experts | time / dense FFN, processor | wall |", rows)
    for ours in ("sorted-compiled", "sorted"):
        measured = {key: found for key, found in same.items() if ours in found}
        gains = {
            key: min(found["eager"], found["grouped_mm"]) / found[ours] for key, found in measured.items()
        }
        many = [key for key in measured if key[-1] != "forward"]
        few = [key for key in measured if key[-1] == "forward"]
        goals: list[tuple[str, list[float], float]] = [
            ("at least 0.8 of the ideal, forward and backward", [key[2] / key[3] / same[key][ours] for key in many], 0.8),
            ("not slower than the better of transformers' two, forward and backward", [gains[key] for key in many], 1.0),
            ("1.2 times the better of transformers' two, forward and backward", [gains[key] for key in many], 1.2),
            ("not slower than the better of transformers' two, forward", [gains[key] for key in few], 1.0),
            ("not slower than the dense FFN, forward of few tokens", [1 / same[key][ours] for key in few], 1.0),
        ]  # fmt: skip
        for name, found, wanted in goals:
            if found:
                values = ", ".join(f"{value:.2f}" for value in found)
                lines.append(
                    f"- `{ours}`, {name}: {sum(value >= wanted for value in found)} of {len(found)} ({values})."
                )
    return lines


def step(raw: Any) -> list[str]:
    """benchmarks/step.py."""
    head = (
        "| active FFN | time / dense step: ideal | ours, wall | processor | faster than the Trainer, wall | processor "
        "| GB ours / Trainer | ratio |"
    )
    rows = [
        f"| {row['active']:.0%} | {row['ideal']:.2f} | {spread(row['of_dense_wall'])} | {spread(row['of_dense_processor'])} "
        f"| {spread(row['faster_than_trainer_wall'])} | {spread(row['faster_than_trainer_processor'])} "
        f"| {row['memory_gb']['ours']:.2f} / {row['memory_gb']['trainer']:.2f} | {row['memory_of_trainer']:.2f} |"
        for row in raw["rows"]
    ]
    layers = f"{raw['layers']} layers" if raw["layers"] else "all layers"
    lines = [
        f"{layers}, {raw['micro_batch']} x {raw['length']} tokens, the Trainer's experts: {raw['implementation']}."
    ]
    lines += table(head, rows)
    for row in raw["rows"]:
        fast = row["faster_than_trainer_processor"][0]
        lines.append(
            f"- {row['active']:.0%} active: at least 1.2 times the Trainer (processor time): {told(fast >= 1.2)} ({fast:.2f}); "
            f"at most 0.8 of its memory: {told(row['memory_of_trainer'] <= 0.8)} ({row['memory_of_trainer']:.2f})."
        )
    return lines


def generation(raw: Any) -> list[str]:
    """benchmarks/decode.py."""
    rows = [
        f"| {row['shape']} | {row['batch']} | {spread(row['of_dense'])} | {spread(row['of_grouped_mm'])} |"
        for row in raw["rows"]
    ]
    head = "| experts | sequences at once | new tokens/s: ours / dense parent | ours / transformers' grouped_mm |"
    return table(head, rows)


def workflow(raw: Any) -> list[str]:
    """benchmarks/workflow.py."""
    rows = [
        f"| {name} | {spread(raw[key]['wall'])} | {spread(raw[key]['processor'])} | {wanted:g} | {told(raw[key]['processor'][0] < wanted)} |"
        for name, key, wanted in (
            (f"no-op of a finished DAG of {raw['steps']} steps / empty Snakefile", "no_op", 3.0),
            ("`moesaic --help` / `import torch`", "help", 0.5),
        )
    ]
    return table("| | wall | processor | under | |", rows)


def prepare(raw: Any) -> list[str]:
    """benchmarks/prepare.py."""
    own = raw["results"]
    lines = []
    for kind in ("wall", "processor"):
        value = [own[f"ratio, {kind} time{rest}"] for rest in ("", ", lowest", ", highest")]
        lines.append(f"- Tokenising and packing beside the bare tokenizer library, {kind}: {spread(value)}.")
    lines.append(f"- Peak memory for 10 times the text: {own['growth']:.2f} times.")
    return lines + [f"- {name}: {told(passed)}." for name, passed in raw["checks"].items()]


def construction(raw: Any) -> list[str]:
    """benchmarks/clustering.py."""
    what = f"Split `clustering` of {raw['layers']} layers in {raw['experts']} experts beside LLaMA-MoE's setting (10 initialisations, 500 iterations), processor"
    low, high = raw["distance_of_theirs"][1:]
    return [
        *faster(what)(raw),
        f"- Mean squared distance to the cluster's centre, ours / theirs: {low:.4f} to {high:.4f}.",
    ]


def faster(what: str) -> Callable[[Any], list[str]]:
    """A script whose JSON has `faster` and `range`."""

    def section(raw: Any) -> list[str]:
        return [f"- {what}: {raw['faster']:.2f} ({raw['range'][0]:.2f}-{raw['range'][1]:.2f}) times as fast."]

    return section


SECTIONS: list[tuple[str, str, str, Callable[[Any], list[str]]]] = [
    ("Experts of one layer, width 576", "layer.json", "python benchmarks/layer.py --repetitions 7", layer),
    ("Experts of one layer, width 2048", "layer-2048.json", "python benchmarks/layer.py --widths 2048 --repetitions 5 --out benchmarks/results/layer-2048.json", layer),
    ("Experts of one layer, width 2048, 8,192 tokens", "layer-2048-8192.json", "python benchmarks/layer.py --widths 2048 --tokens 8192 --repetitions 5 --out benchmarks/results/layer-2048-8192.json", layer),
    ("A training step", "step.json", "python benchmarks/step.py --layers 8", step),
    ("A training step, whole model", "step-30.json", "python benchmarks/step.py --repetitions 7 --out benchmarks/results/step-30.json", step),
    ("Generation", "decode.json", "python benchmarks/decode.py", generation),
    ("The workflow itself", "workflow.json", "python benchmarks/workflow.py", workflow),
    ("Preparation", "prepare.json", "python benchmarks/prepare.py", prepare),
    ("Packed conversations", "packing.json", "python benchmarks/packing.py --rows 8 --steps 5", faster("Packed beside padded")),
    ("Construction", "clustering.json", "python benchmarks/clustering.py", construction),
    ("Evaluation", "evaluate.json", "python benchmarks/evaluate.py --items 8", faster("Ours beside plain lm-eval, same scores")),
]  # fmt: skip


def main() -> None:
    """Write the page."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    lines = [
        "# Benchmarks",
        "",
        "Written by `benchmarks/page.py` from `benchmarks/results/`; `make bench` runs everything again, `make bench-long` the two longest. Ratios of medians within one run, with the lowest",
        "and the highest of the repetitions; candidates alternate. Processor time is what a busy machine changes least.",
        "",
        f"Machine of this page: {machine()}, no GPU, load {os.getloadavg()[2]:.1f} when it was written. {versions}.",
        "",
        "GPU: [training](methods/training.md#measured-on-a-gpu). Quality by construction: [studies](studies/construction.md); a 7B model: [measured](methods/construction/measured.md#a-7b-model-in-little-memory).",
        "",
    ]
    for title, name, command, section in SECTIONS:
        path = RESULTS / name
        lines += [f"## {title}", "", f"    {command}", ""]
        if not path.exists():
            lines += ["Not run.", ""]
            continue
        lines += [f"Figures of {written(path)}.", ""]
        lines += [*section(json.loads(path.read_text())), ""]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    PAGE.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
