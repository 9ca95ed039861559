"""Continual pre-training step: our loop beside plain transformers (its grouped and its eager experts) and the dense parent, in one run.

    snakemake --profile profiles/local --cores 2 results/dense/manifest.json
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

import machine
import numpy as np
import random_moe
import torch

from moesaic import plan
from moesaic.generate import decode
from moesaic.model import families, grouped
from moesaic.schema import Pretrain
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
        with grouped.off(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
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
    parser.add_argument("--layers", type=int, help="of the models; default: as many as the parent has")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, in ours")
    parser.add_argument("--only", nargs="+", help="candidates, beside ours and the dense parent")
    arguments = parser.parse_args()
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(arguments.parent, local_files_only=True)
    config.num_hidden_layers = arguments.layers or config.num_hidden_layers
    settings = Pretrain(
        steps=100,
        batch=arguments.micro_batch,
        micro_batch=arguments.micro_batch,
        engine={"gradient_checkpointing": arguments.checkpointing},
    ).model_dump(mode="json")
    family, shape = random_moe.architecture(config, EXPERTS)

    def moe(implementation: str = "grouped_mm") -> Any:
        torch.manual_seed(0)
        model = families.build(family, config, shape)
        model.set_experts_implementation(implementation)
        return model

    device = decode.device()
    candidates: dict[str, tuple[Any, Callable[[], Any]]] = {
        "ours": (ours, moe),
        "transformers, grouped experts": (plain, moe),
        "transformers, eager experts": (plain, lambda: moe("eager")),
        "dense parent, ours": (ours, lambda: AutoModelForCausalLM.from_config(config)),
    }
    if arguments.only:
        wanted = ("ours", "dense parent, ours", *arguments.only)
        candidates = {name: own for name, own in candidates.items() if name in wanted}
    cuda = device.type == "cuda"
    stream = np.random.default_rng(0)

    def batch() -> Any:
        ids = stream.integers(0, config.vocab_size, (arguments.micro_batch, arguments.length))
        rows = [Row(row, np.append(row[1:], -100)) for row in ids]
        return collate(rows, ["text"] * len(rows), ids.size, 1.0, device)

    models: dict[str, Any] = {}
    steps: dict[str, Callable[[Any], None]] = {}
    resident: dict[str, int] = {}
    for name, (make, build_model) in candidates.items():
        before = torch.cuda.memory_allocated() if cuda else 0
        models[name] = build_model()
        steps[name] = make(models[name], settings, device)
        for _ in range(2):  # warm up; the optimizer's state is there afterwards
            steps[name](batch())
        resident[name] = torch.cuda.memory_allocated() - before if cuda else 0
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    memory: dict[str, float] = {}
    for _ in range(arguments.repetitions):
        same = batch()
        for name, step in steps.items():
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                others = torch.cuda.memory_allocated() - resident[name]
            began = time.perf_counter()
            step(same)
            if cuda:
                torch.cuda.synchronize()
                # Of this candidate alone: the others' weights and states lie there, too.
                memory[name] = (torch.cuda.max_memory_allocated() - others) / 1e9
            seconds[name].append(time.perf_counter() - began)
    tokens, peak = arguments.micro_batch * arguments.length, hardware.peak_flops(device)
    found = []
    base = statistics.median(seconds["dense parent, ours"])
    for name, model in models.items():
        middle = statistics.median(seconds[name])
        flops = plan.flops_per_token(model, arguments.length, training=True)
        row = {"candidate": name, "tokens_per_second": tokens / middle, "speed_of_dense": base / middle}
        row |= {"fastest": min(seconds[name]), "slowest": max(seconds[name])}
        row["mfu"] = flops * tokens / middle / peak if peak else None
        row["memory_gb"] = memory.get(name)
        found.append(row)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"device": machine.name(), "layers": config.num_hidden_layers}
    told |= {"width": config.hidden_size, "micro_batch": arguments.micro_batch, "length": arguments.length}
    told |= {"checkpointing": arguments.checkpointing}
    arguments.out.write_text(json.dumps({**told, "rows": found}, indent=1) + "\n")
    print(
        "| candidate | tokens/s | of the dense parent | seconds a step (range) | MFU | GB |\n|---|---|---|---|---|---|"
    )
    for row in found:
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else ""
        memory_gb = f"{row['memory_gb']:.1f}" if cuda else ""
        print(
            f"| {row['candidate']} | {row['tokens_per_second']:.0f} | {row['speed_of_dense']:.2f} "
            f"| {row['fastest']:.3f}-{row['slowest']:.3f} | {mfu} | {memory_gb} |"
        )


if __name__ == "__main__":
    main()
