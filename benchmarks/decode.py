"""Generation by the sampler that distillation and preference tuning use: MoEs of SmolLM2's shape beside the dense parent, our experts beside transformers'.

    moesaic dense --config config/config.yaml        # its config.json is all that is needed
    python benchmarks/decode.py

Random weights, prompts of 20 tokens, 16 new ones each, no answer ends early; new tokens per second. Candidates alternate, ratios are taken within each repetition.
`default` is the shape of config/config.yaml's first variant (first layer dense, 512 + 7 of 32 x 32), `4 of 16` has 512 + 4 of 16 x 64 in every layer.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import machine
import random_moe
import torch

from moesaic.generate.decode import Decoding, decode
from moesaic.model import execution, families

SHAPES: dict[str, dict[str, Any]] = {
    "default": {"shared": 512, "experts": 32, "per_token": 7, "dense_layers": [0], "family": "glm4_moe"},
    "4 of 16": {"shared": 512, "experts": 16, "per_token": 4},
}
BATCHES = (1, 8, 32)
PROMPT, NEW = 20, 16


def model(parent: Path, settings: dict[str, Any] | None) -> Any:
    """An MoE, or with None the dense parent; random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(parent, local_files_only=True)
    torch.manual_seed(0)
    if settings is None:
        return AutoModelForCausalLM.from_config(config).eval()
    family, shape = random_moe.architecture(config, settings)
    return families.build(family, config, shape).eval()


def speed(made: Any, backend: str | None, batch: int) -> float:
    """New tokens per second of one call."""
    if backend:
        made.set_experts_implementation(backend)
    stream = torch.Generator().manual_seed(batch)
    prompts = torch.randint(3, made.config.vocab_size, (batch, PROMPT), generator=stream).tolist()
    began = time.perf_counter()
    decode(made, prompts, [[i] for i in range(batch)], Decoding(NEW), set())
    return batch * NEW / (time.perf_counter() - began)


def main() -> None:
    """Time all shapes, write JSON, print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parent", type=Path, default=Path("results/dense/model"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decode.json"))
    arguments = parser.parse_args()
    execution.register()
    ours = execution.choose("auto", torch.device("cpu"))
    dense, rows = model(arguments.parent, None), []
    for name, settings in SHAPES.items():
        made = model(arguments.parent, settings)
        candidates = {"dense": (dense, None), "ours": (made, ours), "grouped_mm": (made, "grouped_mm")}
        for batch in BATCHES:
            found: dict[str, list[float]] = {key: [] for key in candidates}
            for turn in range(arguments.repetitions + 1):
                for key in list(candidates)[:: 1 if turn % 2 else -1]:
                    value = speed(*candidates[key], batch)
                    if turn:  # the first one warms up
                        found[key].append(value)
            pairs = {
                "of_dense": [a / b for a, b in zip(found["ours"], found["dense"], strict=True)],
                "of_grouped_mm": [a / b for a, b in zip(found["ours"], found["grouped_mm"], strict=True)],
            }
            rows.append(
                {"shape": name, "batch": batch} | {key: machine.spread(value) for key, value in pairs.items()}
            )
            print(json.dumps(rows[-1]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
