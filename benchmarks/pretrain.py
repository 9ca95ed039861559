"""Continual pre-training step: our loop beside plain transformers (its grouped and its eager experts) and the dense parent, in one run.

    snakemake --profile profiles/local results/dense/manifest.json
    python benchmarks/pretrain.py --repetitions 5                     # CPU
    python benchmarks/pretrain.py --micro-batch 16 --length 2048      # GPU: bfloat16 products, memory and MFU too

Same weights (random, of the parent's widths), same tokens, same AdamW; steps alternate between the candidates, so that a busy machine is busy for all.
Ratios are of medians. MFU counts active FLOPs (6 per active weight and the attention).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic import plan
from moesaic.experts import sizes
from moesaic.model import families
from moesaic.schema import Experts, Pretrain
from moesaic.train import hardware
from moesaic.train.engine import adamw, build
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.streams import Row, collate

EXPERTS = {"shared": 512, "experts": 16, "per_token": 4}


def ours(model: Any, settings: dict[str, Any], device: torch.device) -> Callable[[Any], None]:
    """A step of our loop: chunked cross entropy, balance loss, clipping, AdamW."""
    engine = build(Trainee(model.train(), Weights(balance=0.01)), settings)

    def step(batch: Any) -> None:
        engine.forward_backward(batch, last=True)
        engine.step(0)

    return step


def plain(model: Any, settings: dict[str, Any], device: torch.device) -> Callable[[Any], None]:
    """What one writes with transformers alone: its own loss with full logits and its own balance loss."""
    model.to(device).train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = adamw(parameters, settings["optimizer"])
    moe = families.is_moe(model)

    def step(batch: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            more = {"output_router_logits": True} if moe else {}
            loss = model(input_ids=batch.ids_BT, labels=batch.ids_BT, use_cache=False, **more).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), settings["optimizer"]["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Time the candidates in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parent", type=Path, default=Path("results/dense/model"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pretrain.json"))
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(arguments.parent, local_files_only=True)
    settings = Pretrain(steps=100, batch=arguments.micro_batch, micro_batch=arguments.micro_batch).model_dump(
        mode="json"
    )
    experts = Experts(**EXPERTS).model_dump(mode="json")
    shape = sizes.shape(sizes.sizes(config.intermediate_size, experts), config.num_hidden_layers, experts)
    family, _ = families.choose(shape, config)

    def moe(implementation: str = "grouped_mm") -> Any:
        torch.manual_seed(0)
        model = families.build(family, config, shape)
        model.set_experts_implementation(implementation)
        return model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidates: dict[str, tuple[Any, Any]] = {
        "ours": (ours, moe()),
        "transformers, grouped experts": (plain, moe()),
        "transformers, eager experts": (plain, moe("eager")),
        "dense parent, ours": (ours, AutoModelForCausalLM.from_config(config)),
    }
    steps = {name: make(model, settings, device) for name, (make, model) in candidates.items()}
    stream = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    memory: dict[str, float] = {}
    for turn in range(arguments.repetitions + 1):  # the first one warms up
        ids = stream.integers(0, config.vocab_size, (arguments.micro_batch, arguments.length))
        rows = [Row(row, np.append(row[1:], -100)) for row in ids]
        batch = collate(rows, ["text"] * len(rows), ids.size, 1.0, device)
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() / 1e9
            if turn:
                seconds[name].append(time.perf_counter() - began)
    tokens, peak = arguments.micro_batch * arguments.length, hardware.peak_flops(device)
    found = []
    base = statistics.median(seconds["dense parent, ours"])
    for name, (_, model) in candidates.items():
        middle = statistics.median(seconds[name])
        flops = plan.flops_per_token(model, arguments.length, training=True)
        row = {"candidate": name, "tokens_per_second": tokens / middle, "speed_of_dense": base / middle}
        row |= {"fastest": min(seconds[name]), "slowest": max(seconds[name])}
        row["mfu"] = flops * tokens / middle / peak if peak else None
        row["memory_gb"] = memory.get(name)
        found.append(row)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    arguments.out.write_text(json.dumps({"device": name, "rows": found}, indent=1) + "\n")
    print(
        "| candidate | tokens/s | of the dense parent | seconds a step (range) | MFU |\n|---|---|---|---|---|"
    )
    for row in found:
        mfu = f"{row['mfu']:.0%}" if row["mfu"] else ""
        print(
            f"| {row['candidate']} | {row['tokens_per_second']:.0f} | {row['speed_of_dense']:.2f} "
            f"| {row['fastest']:.2f}-{row['slowest']:.2f} | {mfu} |"
        )


if __name__ == "__main__":
    main()
