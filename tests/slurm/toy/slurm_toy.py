"""A small real training step under the step contract: gloo all-reduce, checkpoints, stops when asked to.

    python slurm_toy.py toy_train --config toy.json --nodes 2 --ranks-per-node 2

The command line is moesaic's own; only settings, inputs and folder come from toy.json:
{"toy_train": {"settings": {...}, "inputs": {"data": "results/data/manifest.json"}, "out": "results/train"}}
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moesaic import cli, tools
from moesaic.errors import InputError, Interrupted
from moesaic.flow import files, metrics, paths, signals
from moesaic.flow.step import STEPS, Context, Result, Step

WIDTH = 8


def make_data(context: Context) -> Result:
    """A linear problem, the same on every run."""
    generator = torch.Generator().manual_seed(int(context.settings["seed"]))
    x_BD = torch.randn(64, WIDTH, generator=generator, dtype=torch.float64)
    w_D = torch.arange(1, WIDTH + 1, dtype=torch.float64)
    files.write_json(context.out / "data.json", {"x": x_BD.tolist(), "y": (x_BD @ w_D).tolist()})
    return Result(["data.json"])


def train(context: Context) -> Result | None:
    """Gradient descent on rows shared out over the ranks; equal bits however often it is interrupted."""
    signals.install()
    settings, work = context.settings, context.work
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if settings.get("wrong"):
        raise InputError("toy.wrong: the step was told to fail")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    where = {key: os.environ.get(key) for key in ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK")}
    where |= {"rank": rank, "world": world, "host": platform.node(), "job": os.environ.get("SLURM_JOB_ID")}
    where |= {"threads": os.environ.get("OMP_NUM_THREADS"), "master": os.environ.get("MASTER_ADDR")}
    files.write_json(work / f"rank-{rank}.json", where)
    data = json.loads((context.inputs["data"].folder / "data.json").read_text())
    x_BD = torch.tensor(data["x"], dtype=torch.float64)[rank::world]
    y_B = torch.tensor(data["y"], dtype=torch.float64)[rank::world]
    first, w_D = _load(context)
    if world > 1:
        dist.barrier()
    log = metrics.MetricsFile(work / metrics.NAME, first or None) if rank == 0 else None
    for step in range(first, settings["steps"]):
        if settings.get("die") == [rank, step]:
            os.kill(os.getpid(), 9)
        if settings.get("hang") == [rank, step]:
            time.sleep(600)
        if settings.get("raise") == [rank, step]:
            raise RuntimeError("told to raise")
        residual_B = x_BD @ w_D - y_B
        flag = torch.tensor([float(signals.stop_requested())], dtype=torch.float64)
        packed = torch.cat([x_BD.T @ residual_B, (residual_B**2).sum()[None], flag])
        if world > 1:
            dist.all_reduce(packed)
        w_D = w_D - 0.005 * packed[:WIDTH]
        time.sleep(settings["pause"])
        done, stop = step + 1, bool(packed[-1] > 0)
        if log is not None:
            log.log(done, {"loss": float(packed[WIDTH])})
            if stop:
                time.sleep(settings.get("slow_save", 0.0))  # a real checkpoint takes its time
            if stop or done % settings["save"] == 0:
                files.write_json(work / "checkpoint.json", {"step": done, "w": w_D.tolist()})
        if stop and done < settings["steps"]:
            raise Interrupted(f"{context.name}: stopped after step {done}")
    if log is None:
        return None
    files.write_json(context.out / "weights.json", w_D.tolist())
    return Result(["weights.json"], {"loss": float(packed[WIDTH]) if first < settings["steps"] else None})


def _load(context: Context) -> tuple[int, torch.Tensor]:
    path = context.work / "checkpoint.json"
    if not path.exists():
        return 0, torch.zeros(WIDTH, dtype=torch.float64)
    state = json.loads(path.read_text())
    return state["step"], torch.tensor(state["w"], dtype=torch.float64)


STEPS["toy_data"] = Step("toy_data", "slurm_toy", "make_data")
STEPS["toy_train"] = Step("toy_train", "slurm_toy", "train", distributed=True)


def main() -> None:
    """moesaic's command line, with the toy steps' plan instead of the pipeline's."""
    tools.load = lambda arguments: json.loads(Path(arguments.config).read_text())
    paths.plan_step = _plan
    cli.main()


def _plan(config: dict[str, Any], step: str, *_: Any) -> paths.Plan:
    item = config[step]
    inputs = {name: Path(path) for name, path in item.get("inputs", {}).items()}
    return paths.Plan(item["settings"], inputs, Path(item["out"]))


if __name__ == "__main__":
    main()
