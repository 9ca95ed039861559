"""Is the planner's memory right? Predicted against measured peak of real training steps on the CPU.

    snakemake --profile profiles/local --cores 2 results/dense/manifest.json
    python benchmarks/plan.py

Each row trains a few steps in a process of its own: an MoE of the parent's widths with random weights, float32, plain torch. Measured: the peak of
the resident memory, with a C library that returns what is freed (MALLOC_MMAP_THRESHOLD_; by default glibc keeps up to a fifth more, which no
GPU sees). The process before anything is loaded is measured too and counts as the plan's `base`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import random_moe
import torch

from moesaic.model import families
from moesaic.schema import Pretrain
from moesaic.train import memory
from moesaic.train.engine import build
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.streams import Row, collate

ROWS: list[dict[str, Any]] = [
    {"micro_batch": 2, "batch": 2}, {"micro_batch": 4, "batch": 4}, {"micro_batch": 2, "batch": 4},
    {"micro_batch": 4, "batch": 4, "engine": {"gradient_checkpointing": True}},
    {"micro_batch": 4, "batch": 4, "optimizer": {"freeze_embeddings": True}},
]  # fmt: skip
EXPERTS = {"shared": 512, "experts": 16, "per_token": 4}
LENGTH = 512


def peak_gb() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / memory.BILLION


def one(parent: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Train three steps; predicted and measured GB."""
    from transformers import AutoConfig

    torch.set_num_threads(2)
    config = AutoConfig.from_pretrained(parent, local_files_only=True)
    family, shape = random_moe.architecture(config, EXPERTS)
    with torch.device("meta"):
        shell = families.build(family, config, shape)
    base = peak_gb()
    model = families.build(family, config, shape)
    training = Pretrain(**{"steps": 3, **settings}).model_dump(mode="json")
    trainee = Trainee(model, Weights(balance=0.01)).train()
    engine = build(trainee, training)
    stream = np.random.default_rng(0)
    for step in range(3):
        for _ in range(training["batch"] // training["micro_batch"]):
            rows = [
                Row(ids, np.append(ids[1:], 0))
                for ids in stream.integers(0, 1000, (training["micro_batch"], LENGTH))
            ]
            batch = collate(rows, ["text"] * len(rows), training["batch"] * LENGTH, 1.0, engine.device)
            engine.forward_backward(batch, last=True)
        engine.step(step)
    measured = peak_gb()
    predicted = memory.memory(training, shell, None, LENGTH, 1, mixed=False, base_gb=base)
    return {"predicted": predicted["total"], "measured": measured}


def main() -> None:
    """Print a row for each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parent", type=Path, default=Path("results/dense/model"))
    parser.add_argument("--one", help="a setting as JSON; used by the script itself")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.parent, json.loads(arguments.one))))
        return
    print("| settings | predicted GB | measured GB | ratio |\n|---|---|---|---|")
    for settings in ROWS:
        call = [sys.executable, __file__, "--parent", str(arguments.parent), "--one", json.dumps(settings)]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
        found = json.loads(
            subprocess.run(
                call, check=True, capture_output=True, text=True, env=environment
            ).stdout.splitlines()[-1]
        )
        ratio = found["predicted"] / found["measured"]
        print(
            f"| {json.dumps(settings)} | {found['predicted']:.2f} | {found['measured']:.2f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
