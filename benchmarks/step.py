"""A whole training step of a SmolLM2-shaped MoE: ours beside the HF Trainer with its best experts, and beside the dense parent times the share of active FLOPs.

    moesaic dense --config config/config.yaml        # its config.json is all that is needed
    python benchmarks/step.py
    python benchmarks/step.py --active 0.25 0.5 0.75 --layers 30 --repetitions 5

Same architecture, tokens, float32, fused AdamW, clipping and balance loss on both sides; random weights. The Trainer's step is its own `training_step` (grouped_mm, its
default and the faster of its two on a CPU), then clipping and its optimizer. Steps alternate in one process; ratios are taken within each repetition, wall clock and
processor time. Memory: the peak of resident memory of two steps in a fresh process for each side, less that of the process after its imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import random_moe
import torch

from moesaic.model import cost, families
from moesaic.schema import Pretrain
from moesaic.train.engine import build
from moesaic.train.objectives import Batch, Trainee, Weights
from moesaic.train.streams import Row, collate

SPLITS = {
    0.25: {"shared": 256, "experts": 20, "per_token": 2},
    0.5: {"shared": 512, "experts": 16, "per_token": 4},
    0.75: {"shared": 768, "experts": 12, "per_token": 6},
}
"""By share of FFN neurons that run; experts of 64 neurons in a parent of 1536."""
BALANCE = 0.01
Step = Callable[[Batch], None]


def model(arguments: Any, active: float | None) -> Any:
    """An MoE of a share of active neurons, or with None the dense parent; random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(arguments.parent, local_files_only=True)
    config.num_hidden_layers = arguments.layers or config.num_hidden_layers
    torch.manual_seed(0)
    if active is None:
        return AutoModelForCausalLM.from_config(config)
    family, shape = random_moe.architecture(config, SPLITS[active])
    return families.build(family, config, shape)


def ours(arguments: Any, active: float | None) -> Step:
    """The training loop's engine and loss."""
    settings = Pretrain(
        steps=1000, batch=arguments.micro_batch, micro_batch=arguments.micro_batch
    ).model_dump(mode="json")
    engine = build(Trainee(model(arguments, active).train(), Weights(balance=BALANCE)), settings)

    def step(batch: Batch) -> None:
        engine.forward_backward(batch, last=True)
        engine.step(10)

    return step


def trainer(arguments: Any, active: float | None) -> Step:
    """transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    made = model(arguments, active)
    made.set_experts_implementation(arguments.implementation)
    made.config.output_router_logits, made.config.router_aux_loss_coef = True, BALANCE
    settings = Pretrain().model_dump(mode="json")["optimizer"]
    options = TrainingArguments(
        output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), per_device_train_batch_size=arguments.micro_batch, report_to=[],
        learning_rate=settings["lr"], weight_decay=settings["weight_decay"], adam_beta1=settings["betas"][0], adam_beta2=settings["betas"][1],
        max_grad_norm=settings["clip"], optim="adamw_torch_fused", save_strategy="no",
    )  # fmt: skip
    own = Trainer(model=made.train(), args=options)
    optimizer = own.create_optimizer()
    own.current_gradient_accumulation_steps = 1  # which `train` sets

    def step(batch: Batch) -> None:
        own.training_step(made, {"input_ids": batch.ids_BT, "labels": batch.ids_BT})
        torch.nn.utils.clip_grad_norm_(made.parameters(), options.max_grad_norm)
        optimizer.step()
        made.zero_grad()

    return step


SIDES = {"ours": ours, "trainer": trainer}


def batches(arguments: Any) -> Callable[[], Batch]:
    """Random tokens, the same sequence of batches in every process."""
    stream = np.random.default_rng(0)

    def draw() -> Batch:
        ids = stream.integers(0, 49152, (arguments.micro_batch, arguments.length))
        rows = [Row(row, np.append(row[1:], -100)) for row in ids]
        return collate(
            rows,
            ["text"] * len(rows),
            arguments.micro_batch * (arguments.length - 1),
            1.0,
            torch.device("cpu"),
        )

    return draw


def resident_gb(peak: bool) -> float:
    """Resident memory of this process, GB: at its highest so far, or now (Linux)."""
    wanted = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(wanted)).split()[1]) * 1024 / 1e9


def child(arguments: Any) -> None:
    """Two steps of one side; tells the peak of this process beyond its imports."""
    import transformers

    assert transformers.Trainer is not None  # imported before the base is read
    base = resident_gb(peak=False)
    step, draw = SIDES[arguments.child](arguments, arguments.active[0]), batches(arguments)
    for _ in range(2):
        step(draw())
    print(json.dumps(resident_gb(peak=True) - base))


def memory(arguments: Any, side: str, active: float) -> float:
    """Peak GB of a side in a fresh process. The C library gives freed memory back at once, so that fragmentation does not count."""
    call = [
        sys.executable, __file__, "--child", side, "--active", str(active), "--parent", str(arguments.parent), "--length", str(arguments.length),
        "--micro-batch", str(arguments.micro_batch), "--layers", str(arguments.layers or 0), "--implementation", arguments.implementation,
    ]  # fmt: skip
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(call, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(arguments: Any, active: float) -> dict[str, Any]:
    """One share of active neurons."""
    steps = {
        "dense": ours(arguments, None),
        "ours": ours(arguments, active),
        "trainer": trainer(arguments, active),
    }
    draw = batches(arguments)
    wall: dict[str, list[float]] = {name: [] for name in steps}
    work: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.repetitions + 1):
        batch = draw()
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            began, used = time.perf_counter(), time.process_time()
            steps[name](batch)
            if turn:  # the first one warms up and makes the optimizer's state
                wall[name].append(time.perf_counter() - began)
                work[name].append(time.process_time() - used)
    flops = [
        cost.flops_per_token(model(arguments, share), arguments.length, training=True)
        for share in (active, None)
    ]
    found: dict[str, Any] = {"active": active, **SPLITS[active], "ideal": flops[0] / flops[1]}
    for kind, times in (("wall", wall), ("processor", work)):
        found[f"faster_than_trainer_{kind}"] = machine.spread(
            [a / b for a, b in zip(times["trainer"], times["ours"], strict=True)]
        )
        found[f"of_dense_{kind}"] = machine.spread(
            [a / b for a, b in zip(times["ours"], times["dense"], strict=True)]
        )
    return found


def main() -> None:
    """All shares; JSON and a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parent", type=Path, default=Path("results/dense/model"))
    parser.add_argument("--active", type=float, nargs="+", default=[0.25, 0.5, 0.75], choices=SPLITS)
    parser.add_argument("--layers", type=int, default=0, help="0: as many as the parent has")
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--implementation", default="grouped_mm", help="of the Trainer's experts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    told = {key: getattr(arguments, key) for key in ("layers", "micro_batch", "length", "repetitions")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for active in arguments.active:
        row = measure(arguments, active)
        row["memory_gb"] = {side: memory(arguments, side, active) for side in SIDES}
        row["memory_of_trainer"] = row["memory_gb"]["ours"] / row["memory_gb"]["trainer"]
        rows.append(row)
        print(json.dumps(row), flush=True)
        made = {**told, "implementation": arguments.implementation, "rows": rows}
        arguments.out.write_text(json.dumps(made, indent=1) + "\n")  # what is there is kept


if __name__ == "__main__":
    main()
