"""One MoE layer on a CPU beside the dense FFN it was cut from: forward and backward of many tokens, forward of few.

    python benchmarks/layer.py
    python benchmarks/layer.py --widths 2048 --out benchmarks/results/layer-2048.json        # seconds a pass
    python benchmarks/layer.py --widths 2048 --tokens 8192 --out benchmarks/results/layer-2048-8192.json        # half a minute a pass

Candidates: the dense FFN, transformers' eager and grouped backends, ours (`moesaic.model.sorted_experts`, plain and compiled); float32, even and skewed routing, random weights.
Ideal: dense time times the share of neurons that run. Repetitions alternate, each after a pass that is not timed; a candidate's
ratio to the dense FFN is taken within each, then the median, wall clock. Few tokens run through as many layers as fill the caches over, as in a model.
Processor time is told beside it, which other work on the machine changes less. batched_mm is not timed: 28 to 34 times the dense FFN at 256 tokens.
"""

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import experts as peers
import machine
import torch
from torch import Tensor, nn

WIDTHS = {576: 1536, 2048: 5632}
MANY, FEW = (2048, 8192), (1, 16, 256)
CACHES = 256_000_000
"""Bytes that no processor's caches hold: what few tokens cost in a model is the reading of its layers' weights."""
OURS = ("sorted", "sorted-compiled")
CANDIDATES = ("eager", "grouped_mm", *OURS)


def candidates(width: int, count: int, chosen: int) -> dict[str, nn.Module]:
    """The dense FFN, and one layer's experts in every backend, with the same weights."""
    shape = SimpleNamespace(width=width, intermediate=WIDTHS[width])
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {"dense": peers.FFN(width, WIDTHS[width])}
    for name in CANDIDATES:
        made[name] = peers.experts(shape, count, chosen, name)
        made[name].load_state_dict(made[CANDIDATES[0]].state_dict())
    return made


def passed(module: nn.Module, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor, backward: bool) -> None:
    """One pass; gradients are new ones each time, as after zero_grad."""
    if not backward:
        with torch.no_grad():
            module(x_TD, index_TK, weight_TK)
        return
    for leaf in (x_TD, weight_TK, *module.parameters()):
        leaf.grad = None
    module(x_TD, index_TK, weight_TK).sum().backward()


def measure(
    layers: list[dict[str, nn.Module]], tokens: int, skewed: bool, backward: bool, repetitions: int
) -> list[dict[str, Any]]:
    """A row for each candidate: its time over the dense FFN's [median, lowest, highest], wall and processor; many tokens go through the first layer only."""
    modules = {
        name: [layer[name] for layer in layers[: 1 if backward else None]] for name in ("dense", *CANDIDATES)
    }
    sparse: Any = layers[0]["sorted"]
    count, chosen, width = sparse.num_experts, sparse.config.num_experts_per_tok, sparse.config.hidden_size
    index_TK, _ = peers.routing(tokens, count, chosen, skewed)
    weight_TK = torch.rand(tokens, chosen).softmax(dim=1).requires_grad_(backward)
    x_TD = torch.randn(tokens, width, requires_grad=backward)
    passes = 1 if backward else max(2, 16 // tokens)
    wall: dict[str, list[float]] = {name: [] for name in modules}
    work: dict[str, list[float]] = {name: [] for name in modules}
    for turn in range(repetitions + 1):
        for name in list(modules)[:: 1 if turn % 2 else -1]:
            # not timed: its memory and caches, as among layers of one kind
            passed(modules[name][0], x_TD, index_TK, weight_TK, backward)
            began, used = time.perf_counter(), time.process_time()
            for module in modules[name] * passes:
                passed(module, x_TD, index_TK, weight_TK, backward)
            if turn:  # the first one warms up
                wall[name].append(time.perf_counter() - began)
                work[name].append(time.process_time() - used)

    def ratios(times: dict[str, list[float]], name: str) -> list[float]:
        found = [own / base for own, base in zip(times[name], times["dense"], strict=True)]
        return machine.spread(found)

    best = min(("eager", "grouped_mm"), key=lambda name: ratios(wall, name)[0])
    gains = {
        name: {"best": best, "faster_than_best": machine.spread([a / b for a, b in zip(wall[best], wall[name], strict=True)])}
        for name in OURS
    }  # fmt: skip
    same = {
        "width": width, "tokens": tokens, "experts": count, "per_token": chosen, "routing": "skewed" if skewed else "even",
        "pass": "forward and backward" if backward else "forward", "ideal": chosen / count,
    }  # fmt: skip
    return [
        {
            **same, "candidate": name, "of_dense": ratios(wall, name), "of_dense_processor": ratios(work, name),
            **gains.get(name, {}),
        }
        for name in CANDIDATES
    ]  # fmt: skip


def main() -> None:
    """Time all shapes, write JSON, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[576], choices=WIDTHS)
    parser.add_argument(
        "--tokens", type=int, nargs="+", help="default: 1, 16 and 256, then 2048, at width 576 8192 too"
    )
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/layer.json"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for width in arguments.widths:
        for count, chosen in peers.SHAPES.values():
            # a pass of the large width takes seconds: even routing only
            wanted = arguments.tokens or [*FEW, *(MANY if width == 576 else MANY[:1])]
            plans = [(tokens, False) for tokens in wanted]
            if width == 576:
                plans += [(tokens, True) for tokens in wanted if tokens not in FEW]
            few = any(tokens in FEW for tokens in wanted)
            copies = -(-CACHES // (4 * 3 * width * WIDTHS[width])) if few else 1
            layers = [candidates(width, count, chosen) for _ in range(copies)]
            for tokens, skewed in plans:
                found = measure(layers, tokens, skewed, tokens not in FEW, arguments.repetitions)
                rows += found
                made = {"repetitions": arguments.repetitions, "rows": rows}
                arguments.out.write_text(json.dumps(made, indent=1) + "\n")  # what is there is kept
                for row in found:
                    print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    middle, low, high = row["of_dense"]
    gain = row.get("faster_than_best")
    peer = f"{gain[0]:.2f} ({gain[1]:.2f}-{gain[2]:.2f}) of {row['best']}" if gain else ""
    return (
        f"| {row['width']} | {row['tokens']} | {row['per_token']}/{row['experts']}, {row['routing']} | {row['pass']} | {row['candidate']} "
        f"| {middle:.2f} ({low:.2f}-{high:.2f}) | {row['of_dense_processor'][0]:.2f} | {row['ideal'] / middle:.2f} "
        f"| {peer} |"
    )


if __name__ == "__main__":
    main()
