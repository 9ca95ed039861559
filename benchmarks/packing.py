"""A tuning step on real conversations: packed into as few sequences as possible, and padded to the longest, in one run.

    for step in dense chat; do moesaic $step --config config/recipes/moe-sft.yaml; done
    python benchmarks/packing.py

An MoE of the parent's widths with random weights, or the dense parent; the same rows for both ways, drawn evenly from the sets; steps alternate. Ratios are medians over the steps.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import random_moe
import torch

from moesaic.data.sampler import Sample
from moesaic.flow import manifest
from moesaic.model import families
from moesaic.schema import Tune
from moesaic.train import packing, streams
from moesaic.train.engine import build
from moesaic.train.objectives import Trainee, Weights

EXPERTS = {"shared": 512, "experts": 16, "per_token": 4}
WAYS = {"packed": packing.collate, "padded": streams.collate}


def main() -> None:
    """Time the steps, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parent", type=Path, default=Path("results/dense/model"))
    parser.add_argument("--chat", type=Path, default=Path("results/prepare/chat"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/packing.json"))
    parser.add_argument("--rows", type=int, default=16, help="conversations in a micro-batch")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--dense", action="store_true", help="the dense parent instead of an MoE")
    arguments = parser.parse_args()
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(arguments.parent, local_files_only=True)
    family, shape = random_moe.architecture(config, EXPERTS)
    torch.manual_seed(0)
    model = (
        AutoModelForCausalLM.from_config(config) if arguments.dense else families.build(family, config, shape)
    )
    settings = Tune(steps=100, batch=arguments.rows, micro_batch=arguments.rows).model_dump(mode="json")
    engine = build(Trainee(model.train(), Weights(balance=0.01)), settings)
    stream = streams.ChatStream(manifest.read(arguments.chat), "train")
    names, draw = sorted(stream.sizes), np.random.default_rng(0)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    positions: dict[str, int] = dict.fromkeys(WAYS, 0)
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens = 0
    for step in range(arguments.steps + 1):  # the first one warms up
        domains = [names[i % len(names)] for i in range(arguments.rows)]
        rows = stream.rows([Sample(name, int(draw.integers(stream.sizes[name]))) for name in domains])
        for way, collate in WAYS.items():
            batch = collate(rows, domains, streams.count_targets(rows), 1.0, engine.device)
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            loss, _ = engine.forward_backward(batch, last=True)
            engine.optimizer.zero_grad(set_to_none=True)  # no step: both ways see the same weights
            losses[way].append(float(loss))
            if step:
                seconds[way].append(time.perf_counter() - began)
                positions[way] += batch.ids_BT.numel()
        tokens += sum(len(row.ids) for row in rows) if step else 0
    ratios = [a / b for a, b in zip(seconds["padded"], seconds["packed"], strict=True)]
    difference = max(abs(a - b) / b for a, b in zip(losses["packed"], losses["padded"], strict=True))
    made: dict[str, Any] = {
        "device": machine.name(), "dense": arguments.dense, "rows": arguments.rows, "steps": arguments.steps,
        "faster": statistics.median(ratios), "range": [min(ratios), max(ratios)], "padding": {way: 1 - tokens / positions[way] for way in WAYS},
        "loss_difference": difference,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(made, indent=1) + "\n")
    print("| | seconds a step (median) | padding |\n|---|---|---|")
    for way in WAYS:
        print(f"| {way} | {statistics.median(seconds[way]):.2f} | {made['padding'][way]:.0%} |")
    print(
        f"packed is {made['faster']:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times as fast; losses differ by {difference:.1e} at most"
    )


if __name__ == "__main__":
    main()
