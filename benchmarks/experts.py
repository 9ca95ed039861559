"""Experts of one layer, forward and backward: transformers' backends beside the dense FFN of the same active size and one bare matrix product.

    python benchmarks/experts.py                                                        # a GPU, LLaMA-2-7B's widths, bfloat16
    python benchmarks/experts.py --width 576 --intermediate 1536 --tokens 2048 --float32   # a CPU

Random weights; each token's experts are drawn evenly, or half of the tokens have expert 0 among theirs. Repetitions alternate between the candidates;
medians. `of the FFN`: speed beside the dense FFN with as many neurons as run per token. `of the ceiling`: FLOP/s over those of one large matrix product
measured in the same run.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor, nn

from moesaic.generate import decode

SHAPES = {"2/8": (8, 2), "4/16": (16, 4)}
BACKENDS = ("eager", "batched_mm", "grouped_mm", "sorted")


def experts(arguments: Any, count: int, chosen: int, backend: str) -> nn.Module:
    """The experts of one layer in a backend."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from moesaic.model import execution, families

    execution.register()
    config = AutoConfig.for_model(
        "mixtral", hidden_size=arguments.width, intermediate_size=arguments.intermediate // count, num_local_experts=count,
        num_experts_per_tok=chosen, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=8, vocab_size=64,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.set_experts_implementation(backend)
    found = next(iter(families.parts(model))).experts
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.02)
    return found


class FFN(nn.Module):
    """The dense FFN of as many neurons."""

    def __init__(self, width: int, neurons: int):
        super().__init__()
        self.gate, self.up = (nn.Linear(width, neurons, bias=False) for _ in range(2))
        self.down = nn.Linear(neurons, width, bias=False)

    def forward(self, x_TD: Tensor, *_: Any) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x_TD)) * self.up(x_TD))


def routing(tokens: int, count: int, chosen: int, skewed: bool) -> tuple[Tensor, Tensor]:
    """Experts [T, K] and their weights; skewed: expert 0 is among those of half of the tokens at least."""
    stream = torch.Generator().manual_seed(0)
    score_TE = torch.rand(tokens, count, generator=stream)
    if skewed:
        score_TE[: tokens // 2, 0] = 2.0
    index_TK = score_TE.topk(chosen).indices
    return index_TK, torch.full((tokens, chosen), 1.0 / chosen)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call, waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def ceiling(width: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one large matrix product."""
    a, b = (torch.randn(2 * width, 2 * width, device=device, dtype=dtype) for _ in range(2))
    found = [seconds(lambda: a @ b, device) for _ in range(60 if device.type == "cuda" else 8)]
    return 2 * (2 * width) ** 3 / statistics.median(found[len(found) // 2 :])


def main() -> None:
    """Time the candidates in turn, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--backends", nargs="+", default=["eager", "grouped_mm"], choices=BACKENDS)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/experts.json"))
    arguments = parser.parse_args()
    device = decode.device()
    dtype = torch.float32 if arguments.float32 else torch.bfloat16
    peak = ceiling(max(arguments.width, 1024), dtype, device)
    rows: list[dict[str, Any]] = []
    for shape, (count, chosen) in SHAPES.items():
        active = arguments.intermediate // count * chosen
        flops = 3 * 6 * arguments.tokens * arguments.width * active
        for skewed in (False, True):
            index_TK, weight_TK = (
                item.to(device) for item in routing(arguments.tokens, count, chosen, skewed)
            )
            x_TD = torch.randn(arguments.tokens, arguments.width, device=device, dtype=dtype)
            x_TD.requires_grad_(True)
            modules: dict[str, nn.Module] = {"dense FFN": FFN(arguments.width, active)}
            modules |= {name: experts(arguments, count, chosen, name) for name in arguments.backends}
            for module in modules.values():
                module.to(device, dtype)

            def run(
                module: nn.Module,
                x_TD: Tensor = x_TD,
                index_TK: Tensor = index_TK,
                weight_TK: Tensor = weight_TK,
            ) -> None:
                module(x_TD, index_TK, weight_TK.to(x_TD.dtype)).sum().backward()

            times: dict[str, list[float]] = {name: [] for name in modules}
            for turn in range(arguments.repetitions + 2):
                for name, module in modules.items():
                    took = seconds(lambda module=module: run(module), device)
                    if turn > 1:  # the first ones warm up
                        times[name].append(took)
            base = statistics.median(times["dense FFN"])
            for name, found in times.items():
                middle = statistics.median(found)
                rows.append(
                    {
                        "shape": shape, "routing": "skewed" if skewed else "even", "candidate": name, "milliseconds": middle * 1e3,
                        "range": [min(found) * 1e3, max(found) * 1e3], "of_ffn": base / middle, "of_ceiling": flops / middle / peak,
                    }
                )  # fmt: skip
    told = {"device": machine.name(), "dtype": str(dtype)}
    told |= {"width": arguments.width, "intermediate": arguments.intermediate, "tokens": arguments.tokens}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({**told, "ceiling_tflops": peak / 1e12, "rows": rows}, indent=1) + "\n"
    )
    print(
        f"{told['device']}, {dtype}, one product: {peak / 1e12:.1f} TFLOP/s\n"
        "| shape | routing | candidate | ms (range) | of the FFN | of the ceiling |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        low, high = row["range"]
        print(
            f"| {row['shape']} | {row['routing']} | {row['candidate']} | {row['milliseconds']:.2f} ({low:.2f}-{high:.2f}) "
            f"| {row['of_ffn']:.2f} | {row['of_ceiling']:.0%} |"
        )


if __name__ == "__main__":
    main()
