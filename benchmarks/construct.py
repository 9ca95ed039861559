"""Perplexity before any training, by construction method, beside the dense parent and a pruned control.

    snakemake --profile profiles/local results/dense/manifest.json results/prepare/tokens/manifest.json
    python benchmarks/construct.py --active 0.5 --seeds 1

Rows already in the output file are not made again, so the run can be interrupted and extended. Calibration text is training text, test text
validation text; the held-out domain is in no calibration. Ratios to the dense parent, geometric mean over the calibrated domains.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from moesaic.data import packed
from moesaic.evaluate import likelihood
from moesaic.experts import calibration, construct, scale
from moesaic.flow import manifest
from moesaic.model import load
from moesaic.model.lazy import LazyModel
from moesaic.schema import Experts

scale.FACTORS["off"] = lambda experts, per_token: 0.0
"""For the control: the same number of neurons, always the same ones, refitted, no routing."""

FITTED = {"router": "least-squares", "reconstruct": "least-squares"}
PLAIN = {"router": "least-squares", "reconstruct": "none"}
METHODS: dict[str, dict[str, Any]] = {
    "random, random router, N/k (LLaMA-MoE)": {"split": "random", "router": "random", "scale": "n-over-k"},
    "clustering, random router, N/k (LLaMA-MoE)": {
        "split": "clustering",
        "router": "random",
        "scale": "n-over-k",
    },
    "static pruning, refitted (control)": {
        "split": "activation",
        "router": "random",
        "scale": "off",
        "reconstruct": "least-squares",
    },
    "random": {"split": "random", **FITTED},
    "clustering": {"split": "clustering", **FITTED},
    "gradient": {"split": "gradient", **FITTED},
    "coactivation": {"split": "coactivation", **FITTED},
    "coactivation-sampled": {"split": "coactivation-sampled", **FITTED},
    "sharing-inter + shared": {"split": "sharing-inter", "shared": True, **FITTED},
    "activation + shared, no refit": {"split": "activation", "shared": True, **PLAIN},
    "activation + shared, representative router": {
        "split": "activation",
        "shared": True,
        **FITTED,
        "router": "representative",
    },
    "activation + shared (default)": {"split": "activation", "shared": True, **FITTED},
}


def shape(active: float, shared: bool, control: bool, width: int) -> dict[str, int]:
    """Sizes with the wanted share of the FFN running: 8 equal experts, or half of the active neurons shared and 2 of the rest on."""
    eighths = round(8 * active)
    if control:
        return {"shared": round(active * width), "experts": 4, "per_token": 1}
    if not shared:
        return {"shared": 0, "experts": 8, "per_token": eighths}
    always = round(active * width / 2)
    expert = always // 2
    return {"shared": always, "experts": (width - always) // expert, "per_token": 2}


@torch.no_grad()
def perplexities(model: Any, test: dict[str, torch.Tensor]) -> dict[str, float]:
    """Perplexity of each domain."""
    return {
        name: math.exp(float(likelihood.block_nats(model, blocks).sum()) / blocks[:, 1:].numel())
        for name, blocks in test.items()
    }


def row(
    dense: LazyModel, tokens: Any, arguments: Any, name: str, active: float, seed: int, test: Any, parent: Any
) -> dict[str, Any]:
    """Convert once and measure."""
    settings = dict(METHODS[name])
    width = dense.config.intermediate_size
    control = settings.get("scale") == "off"
    sizes = shape(active, settings.pop("shared", False), control, width)
    factor = settings.pop("scale", "times-k")
    merged = Experts(**settings, **sizes, calibration={"tokens": arguments.tokens}).model_dump(
        mode="json"
    ) | {"scale": factor}
    text = calibration.blocks(tokens, [arguments.held_out], merged["calibration"], seed)
    folder = Path(tempfile.mkdtemp(prefix="construct-"))
    (folder / "work").mkdir()
    began = time.monotonic()
    made = construct.convert(
        dense,
        merged,
        text,
        seed,
        folder,
        folder / "work",
        arguments.threads,
        load.load_tokenizer(dense.folder),
    )
    seconds = time.monotonic() - began
    found = perplexities(made.model, test)
    shutil.rmtree(folder)
    ratios = {domain: found[domain] / parent[domain] for domain in test}
    known = [math.log(value) for domain, value in ratios.items() if domain != arguments.held_out]
    return {
        "method": name, "active": active, "seed": seed, "tokens": arguments.tokens, "sizes": sizes, "seconds": round(seconds, 1),
        "calibrated": math.exp(sum(known) / len(known)), "absent": ratios[arguments.held_out], "ratios": ratios,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean over the seeds, range where there are several."""
    lines = [
        "| active | method | seeds | calibrated domains | absent domain | seconds |",
        "|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((item["active"], item["method"]) for item in rows)
    for active, name in sorted(keys, key=lambda key: (key[0], list(METHODS).index(key[1]))):
        own = [item for item in rows if (item["active"], item["method"]) == (active, name)]

        def cell(key: str, own: list[dict[str, Any]] = own) -> str:
            values = [item[key] for item in own]
            mean = f"{sum(values) / len(values):.2f}"
            return mean if len(values) == 1 else f"{mean} ({min(values):.2f}-{max(values):.2f})"

        seconds = sum(item["seconds"] for item in own) / len(own)
        lines.append(
            f"| {active:.0%} | {name} | {len(own)} | {cell('calibrated')} | {cell('absent')} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make the missing rows, then print the table of all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/construct.jsonl"))
    parser.add_argument("--held-out", default="speeches")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), help="as named in METHODS, or the beginning of a name"
    )
    parser.add_argument("--active", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--blocks", type=int, default=4, help="test blocks of each domain")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens = manifest.read(arguments.results / "prepare" / "tokens")
    dense = LazyModel(arguments.results / "dense" / "model")
    test = {}
    for name in packed.domains(tokens):
        stored = packed.open_blocks(tokens, name, "validation")
        test[name] = torch.from_numpy(stored.tokens(list(range(min(arguments.blocks, len(stored)))))).long()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        [json.loads(line) for line in arguments.out.read_text().splitlines()]
        if arguments.out.exists()
        else []
    )
    done = {(item["method"], item["active"], item["seed"], item["tokens"]) for item in rows}
    parent = perplexities(load.load_model(arguments.results / "dense" / "model"), test)
    print("dense parent:", {name: round(value, 2) for name, value in parent.items()}, flush=True)
    for seed in range(arguments.seeds):
        for active in arguments.active:
            for name in METHODS:
                if (name, active, seed, arguments.tokens) in done or not name.startswith(
                    tuple(arguments.methods)
                ):
                    continue
                rows.append(row(dense, tokens, arguments, name, active, seed, test, parent))
                with arguments.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                last = rows[-1]
                print(
                    f"{active:.0%} {name}, seed {seed}: x{last['calibrated']:.2f}, absent x{last['absent']:.2f}",
                    flush=True,
                )
    print(table([item for item in rows if item["tokens"] == arguments.tokens]))


if __name__ == "__main__":
    main()
