"""A results/ folder as a finished run leaves it, made in a second: numbers are invented, files and formats are real.

For a look at the page: python tests/report/fake_results.py FOLDER
"""

import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moesaic import config as configuration
from moesaic.flow import files, manifest, paths
from moesaic.flow.step import STEPS, execute
from moesaic.report import gather
from moesaic.schema import Config
from moesaic.settings import compared

ROOT = Path(__file__).parents[2]
LAYERS, HIDDEN, FFN, VOCABULARY, DENSE = 30, 576, 1536, 49152, 134_515_008
TRAINING = ("pretrain", "tune", "preference", "distill")
BPB = {"wikipedia": 0.86, "books": 1.05, "web": 0.98, "code": 0.71, "science": 0.82, "speeches": 0.90}
TASKS = {"openbookqa_local": (0.34, 0.25), "piqa_local": (0.66, 0.5), "commonsenseqa_local": (0.41, 0.2)}
LOSS = {"construct": 0.42, "pretrain": 0.16, "tune": 0.17, "preference": 0.18, "distill": 0.21}
COUNTS = {
    "questions": 400, "answers": 2000, "right": 750, "different": 900, "pairs": 250, "no_right": 90, "no_wrong": 50, "unrated": 10,
    "ratings": 1200, "unparsable": 60,
}  # fmt: skip
ROUND = {"train": 240, "validation": 10, "counts": {"pure<time": COUNTS}}
START = 1_790_000_000_000


def load_config(
    stages: Sequence[str] | None = None, variants: Sequence[str] | None = None, **changes: Any
) -> Config:
    """The embedded default with some of its variants and stages."""
    loaded = configuration.load(ROOT / "config" / "config.yaml", changes)
    raw = loaded.model_dump(mode="json", exclude_unset=True)
    if stages:
        raw["stages"] = list(stages)
    if variants:
        raw["variants"] = {name: raw["variants"].get(name, {}) for name in variants}
    return configuration.check(raw)


def build(loaded: Config) -> Path:
    """Write results/ of a configuration below the current folder; returns the folder."""
    _shared(loaded)
    for index, variant in enumerate(loaded.variants):
        for stage in loaded.stages:
            _model(loaded, variant, stage, 1 + 1.2 * index)
            _evaluation(loaded, variant, stage, LOSS[stage] * (1 + 1.2 * index))
    return Path("results")


def gathered() -> gather.Gathered:
    """What the report of the embedded default reads, below the current folder."""
    loaded = load_config()
    build(loaded)
    plan = paths.plan_step(loaded, "report")
    return gather.gather(plan.settings, {name: manifest.read(path) for name, path in plan.inputs.items()})


def report(loaded: Config) -> tuple[str, dict[str, Any]]:
    """Run the report step; returns the page and the summary."""
    plan = paths.plan_step(loaded, "report")
    execute(STEPS["report"], plan.settings, plan.inputs, plan.out)
    return (plan.out / "report.html").read_text(), json.loads((plan.out / "summary.json").read_text())


def finish(
    loaded: Config,
    step: str,
    outputs: Sequence[str],
    metrics: dict[str, Any],
    variant: str | None = None,
    stage: str | None = None,
    measured: dict[str, Any] | None = None,
) -> None:
    """run.json and manifest.json of a step whose other files are there."""
    plan = paths.plan_step(loaded, step, variant, stage)
    record = {
        "step": step,
        "settings_digest": configuration.digest(compared(plan.settings)),
        "started": "2026-11-23T09:00:00+00:00",
        "ended": "2026-11-23T09:02:30+00:00",
        "seconds": 150.25,
        "attempts": 2 if step == "tune" else 1,
        "host": "node1",
        "pid": 4242,
        "slurm_job_id": "117" if step in TRAINING else None,
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "python": "3.11.7",
        "command": ["moesaic", step],
        "versions": {"moesaic": "0.1.0", "torch": "2.13.0", "transformers": "5.20.0"},
        "measured": measured or {},
    }
    files.write_json(plan.out / "run.json", record)
    manifest.write(plan.out, step, STEPS[step].version, plan.settings, plan.inputs, outputs, metrics)


def again(
    loaded: Config, step: str, variant: str | None = None, stage: str | None = None, **metrics: Any
) -> None:
    """A finished step, made once more from the inputs and with the settings of now."""
    known = manifest.read(paths.plan_step(loaded, step, variant, stage).out)
    outputs = sorted({item.path.split("/")[0] for item in known.outputs})
    finish(loaded, step, outputs, known.metrics | metrics, variant, stage)


def unfinish(folder: Path) -> None:
    """As a killed step leaves its folder: run.json in work/, no manifest."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").unlink()
    (folder / manifest.NAME).unlink()
    (folder / "work").mkdir(exist_ok=True)
    del record["measured"]
    files.write_json(folder / "work" / "run.json", record)


def _shared(loaded: Config) -> None:
    folder = paths.folder("dense")
    _weights(
        folder,
        {
            "model_type": "llama",
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
            "architectures": ["LlamaForCausalLM"],
        },
    )
    sizes = {"parameters": DENSE, "active_parameters": DENSE, "layers": LAYERS, "hidden": HIDDEN, "ffn": FFN}
    sizes |= {"vocab_size": VOCABULARY, "architecture": "LlamaForCausalLM", "probe_loss": 2.71}  # type: ignore[dict-item]
    finish(loaded, "dense", ["model"], sizes)
    stats: dict[str, Any] = {}
    for i, name in enumerate(loaded.data.domains):
        dropped = {"too short": 20 + i, "near duplicate": 3 * i, "few letters": 2}
        kept = 400 - 30 * i
        count = kept + sum(dropped.values())
        by_reason = {reason: {"documents": n, "characters": 2000 * n} for reason, n in dropped.items()}
        stats[name] = {"documents_in": count, "documents_kept": kept, "dropped": by_reason}
        stats[name] |= {"characters_in": 2000 * count, "characters_kept": 2000 * kept}
    files.write_json(paths.folder("documents") / "stats.json", stats)
    keys = {"in": "documents_in", "kept": "documents_kept", "dropped": "dropped"}
    short = {name: {key: item[old] for key, old in keys.items()} for name, item in stats.items()}
    finish(loaded, "documents", ["stats.json"], {"domains": short})
    counts = {}
    for i, name in enumerate(loaded.data.domains):
        blocks = {"train": 110 - i, "validation": 8}
        counts[name] = {f"{split}_blocks": n for split, n in blocks.items()}
        counts[name] |= {f"{split}_tokens": n * 512 for split, n in blocks.items()}
        counts[name] |= {f"{split}_bytes": n * 2048 for split, n in blocks.items()}
    files.write_json(paths.folder("tokens") / "stats.json", {})
    finish(loaded, "tokens", ["stats.json"], {"block": 512, "vocab_size": VOCABULARY, "domains": counts})
    chat = {
        "alpaca": {
            "conversations_in": 1000,
            "conversations_kept": 961,
            "dropped": {"too long": 37, "empty answer": 2},
        }
    }
    files.write_json(paths.folder("chat") / "stats.json", chat)
    conversations = {"train": 913, "validation": 48}
    answers = {"train": 81_000, "validation": 4_100}
    finish(
        loaded,
        "chat",
        ["stats.json"],
        {"sources": ["alpaca"], "conversations": conversations, "answer_tokens": answers},
    )
    files.write_json(paths.folder("tasks") / "tasks.json", list(TASKS))
    finish(loaded, "tasks", ["tasks.json"], {"tasks": list(TASKS)})
    if loaded.data.temporal is not None:
        files.write_json(paths.folder("temporal") / "stats.json", {})
        finish(loaded, "temporal", ["stats.json"], {})
    _evaluation(loaded, None, "dense", 0.0)


def _model(loaded: Config, variant: str, stage: str, worse: float) -> None:
    folder = paths.folder(stage, variant)
    experts = configuration.variant_config(loaded, variant).experts
    per_token = 1 if stage == "distill" else experts.per_token
    neurons = (FFN - experts.shared) // experts.experts
    architecture = "GraniteMoeSharedForCausalLM" if experts.shared else "MixtralForCausalLM"
    shape: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "granitemoeshared" if experts.shared else "mixtral",
        "num_hidden_layers": LAYERS,
        "intermediate_size": neurons,
        "num_local_experts": experts.experts,
        "num_experts_per_tok": per_token,
    }
    if experts.shared:
        shape["shared_intermediate_size"] = experts.shared
    _weights(folder, shape)
    idle = LAYERS * 3 * HIDDEN * neurons * (experts.experts - per_token)
    total = DENSE + LAYERS * HIDDEN * experts.experts
    sizes = {"architecture": architecture, "parameters": total, "active_parameters": total - idle}
    if stage == "construct":
        audit = [
            {
                "error": 0.2 + 0.005 * i,
                "load": [1 / experts.experts] * experts.experts,
                "load_cv": 0.1 + 0.01 * i,
                "lift": 0.3 - 0.01 * i,
                "lift_low": 0.25 - 0.01 * i,
                "lift_high": 0.35 - 0.01 * i,
            }
            for i in range(LAYERS)
        ]
        traffic = {"2": {"round_robin": 0.5, "minimum_cut": 0.31, "device": []}}
        files.write_json(
            folder / "equivalence.json", {"max_logit_error": 3.1e-5, "tolerance": 2.4e-3, "max_logit": 24.1}
        )
        files.write_json(
            folder / "audit.json",
            {"layers": audit, "family": {"mixtral": "no: <b>"}, "routing": {"placement": traffic}},
        )
        shape_metrics = {
            "experts": experts.experts,
            "per_token": per_token,
            "shared": experts.shared,
            "neurons": neurons,
        }
        finish(
            loaded,
            stage,
            ["model", "equivalence.json", "audit.json"],
            sizes | shape_metrics | {"equivalence_error": 3.1e-5, "mean_relative_error": 0.2725},
            variant,
        )
        return
    steps = getattr(loaded, stage).steps
    text = stage == "pretrain"
    names = [name for name in loaded.data.domains if name != "speeches"] if text else ["alpaca"]
    _training_log(folder / "work" / "metrics.jsonl", steps, names, worse, stage)
    drawn = {name: steps * 2 // len(names) for name in names}
    training = {"steps": steps, "tokens": steps * 1024, "final_loss": 2.8, "drawn": drawn}
    if stage == "preference":
        training["rounds"] = [ROUND]
        for path in paths.plan_step(loaded, stage, variant).inputs.values():
            if not path.exists():  # the steps before, which the report does not read
                files.write_json(path, {})
    measured = {"tokens_per_second": 812.5, "ranks": 1, "device": "cpu", "memory_gb": 2.4}
    finish(loaded, stage, ["model"], sizes | training, variant, measured=measured)


def _training_log(path: Path, steps: int, names: list[str], worse: float, stage: str) -> None:
    rng = random.Random(f"{path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        loss = 2.6 + 0.9 * worse * math.exp(-6 * step / steps) + rng.gauss(0, 0.05)
        values = {
            "train/loss": loss + 0.01,
            "train/loss/lm": loss,
            "train/loss/balance": 1.05,
            "train/grad_norm": 1 + rng.random(),
            "train/lr": 3e-4 * step / steps,
            "train/tokens": 1024 * step,
            "train/tokens_per_second": 800 + 20 * rng.random(),
            "routing/load_cv": 0.25 * worse + 0.05 * rng.random(),
            "routing/load_cv/layer_0": 0.3,
            "routing/entropy": 1.6,
            "routing/dropped": 0.0,
            "memory/rss_gb": 2.4,
        }
        if stage == "distill":
            values["train/loss/distill"] = 0.9 * math.exp(-2 * step / steps)
        if stage == "preference":
            values |= {
                "train/reward/margin": 0.5 * step / steps,
                "train/reward/accuracy": 0.5 + 0.4 * step / steps,
            }
            values |= {"train/logp/chosen": -1.1, "train/logp/rejected": -1.3 - step / steps}
            if step == steps:
                values |= {
                    f"valid/reward/{name}/pure<time": 0.25
                    for name in ("margin", "chosen", "rejected", "accuracy")
                }
        for name in rng.sample(names, min(2, len(names))):
            values[f"train/loss/domain/{name}"] = loss + BPB.get(name, 0.9) - 0.9
        for name in names:
            values[f"mixture/weight/{name}"] = 1 / len(names)
            values[f"mixture/drawn/{name}"] = float(2 * step // len(names))
        if step == steps:
            values |= {f"valid/loss/{name}": loss + 0.1 for name in names}
            if stage == "distill":
                values |= {f"valid/forward_kl/{name}": 0.123 * worse for name in names}
                values |= {f"valid/reverse_kl/{name}": 0.234 for name in names}
                values |= {f"valid/entropy/{name}": 2.345 for name in names}
        lines += [
            {"ts": START + 6000 * step, "step": step, "key": key, "value": value}
            for key, value in values.items()
        ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _evaluation(loaded: Config, variant: str | None, stage: str, gain: float) -> None:
    folder = paths.folder("evaluate", variant, stage)
    folder.mkdir(parents=True)
    scores: list[dict[str, Any]] = []

    def score(task: str, metric: str, value: float, half: float, n: int, chance: float | None = None) -> None:
        row = {
            "task": task,
            "metric": metric,
            "value": value,
            "ci_low": value - half,
            "ci_high": value + half,
        }
        scores.append(row | {"n": n, "chance": chance})

    for name, bits in BPB.items():
        value = bits * (1 + gain)
        score(f"text/{name}", "bits_per_byte", value, 0.03, 4)
        score(f"text/{name}", "perplexity", 2 ** (4 * value), 1.1, 4)
    trained = [bits for name, bits in BPB.items() if name != "speeches"]
    score("text/average", "bits_per_byte", sum(trained) / len(trained) * (1 + gain), 0.02, 20)
    score("text/held-out", "bits_per_byte", BPB["speeches"] * (1 + gain), 0.03, 4)
    for name, (accuracy, chance) in TASKS.items():
        for metric in ("acc", "acc_norm"):
            score(name, metric, chance + (accuracy - chance) * (1 - min(0.95, gain)), 0.08, 40, chance)
    mean = [chance + (accuracy - chance) * (1 - min(0.95, gain)) for accuracy, chance in TASKS.values()]
    score("mc/average", "acc", sum(mean) / 3, 0.045, 120, sum(chance for _, chance in TASKS.values()) / 3)
    outputs = ["scores.json", "samples.json"]
    if variant is not None:
        experts = configuration.variant_config(loaded, variant).experts.experts
        row = {
            "task": "routing/load_cv",
            "metric": "load_cv",
            "value": 0.3 * (1 + gain),
            "ci_low": None,
            "ci_high": None,
        }
        scores.append(row | {"n": 6, "chance": None})
        _routing(folder / "routing.parquet", experts, f"{variant}{stage}")
        outputs.append("routing.parquet")
    files.write_json(folder / "scores.json", scores)
    texts = ["The capital of France is", "def fibonacci(n):", "<b>Water</b> & ice:"]
    written = [
        {"prompt": text, "text": f" a thing that {variant or 'the parent'} wrote <after> {stage}.\n" * 3}
        for text in texts
    ]
    files.write_json(folder / "samples.json", written)
    files.write_json(folder / "choices.json", {task: _answers(task, variant) for task in TASKS})
    outputs.append("choices.json")
    speed = {
        "tokens_per_second": 1500.0 if variant is None else 1750.0,
        "generation_tokens_per_second": 21.5,
        "seconds": 41.0,
    }
    finish(loaded, "evaluate", outputs, {"tasks": list(TASKS)}, variant, stage, measured=speed)


def _answers(task: str, variant: str | None) -> list[dict[str, Any]]:
    """Five questions: the parent knows the first three, a variant the first two and the last."""
    known = (0, 1, 2) if variant is None else (0, 1, 4)
    return [
        {"key": f"{task}-{i}", "asked": f"Question {i} of {task}: is <b> & c?\nAnswer:", "choices": [" no", " yes <really>"]}
        | {"right": i % 2, "chosen": i % 2 if i in known else 1 - i % 2}
        for i in range(5)
    ]  # fmt: skip


def _routing(path: Path, experts: int, seed: str) -> None:
    rng = random.Random(seed)
    columns: dict[str, list[Any]] = {key: [] for key in ("domain", "layer", "expert", "load", "importance")}
    for domain in BPB:
        for layer in range(1, LAYERS):  # the first one is dense
            raw = [math.exp(rng.gauss(0, 0.35)) for _ in range(experts)]
            for expert, value in enumerate(raw):
                row = (domain, layer, expert, value / sum(raw), value / sum(raw))
                for key, item in zip(columns, row, strict=True):
                    columns[key].append(item)
    pq.write_table(pa.table(columns), path)


def _weights(folder: Path, shape: dict[str, Any]) -> None:
    """A model folder as far as the report looks into it."""
    files.write_json(folder / "model" / "config.json", shape)
    (folder / "model" / "model.safetensors").write_bytes(b"weights stay where they are")


if __name__ == "__main__":
    import os

    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    os.chdir(sys.argv[1])
    whole = load_config()
    build(whole)
    report(whole)
