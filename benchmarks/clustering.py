"""The split of LLaMA-MoE, balanced k-means on the rows of up_proj: our setting beside theirs (ten initialisations, 500 iterations), in one run.

    moesaic dense --config config/config.yaml
    python benchmarks/clustering.py

Real weights, layers evenly over the depth; both settings on every layer, in turns. Processor time, and the mean squared distance of a row to its cluster's centre, which k-means
makes small. Peak memory and whole models of 7B: benchmarks/large.py.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import machine
import torch
from torch.nn import functional

from moesaic.experts.splits import balanced
from moesaic.model.lazy import LazyModel, ffn_of

SETTINGS = {"ours": (1, balanced.MAX_ITERATIONS), "llama-moe": (10, 500)}
"""Initialisations, iterations."""


def distance(points_NP: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Mean squared distance to the own cluster's centre."""
    clusters = [points_NP[labels_N == label] for label in labels_N.unique()]
    return float(sum((own - own.mean(0)).square().sum() for own in clusters) / len(points_NP))


def main() -> None:
    """Time both settings, print and write the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parent", type=Path, default=Path("results/dense/model"))
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--layers", type=int, default=10, help="how many, evenly over the depth")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/clustering.json"))
    arguments = parser.parse_args()
    dense = LazyModel(arguments.parent)
    depth = dense.config.num_hidden_layers
    work: dict[str, list[float]] = {name: [] for name in SETTINGS}
    distances: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for turn in range(arguments.layers):
        layer = turn * depth // arguments.layers
        points_NP = functional.normalize(ffn_of(dense.layer(layer)).up_FD.float(), dim=1)
        for name in list(SETTINGS)[:: 1 if turn % 2 else -1]:
            used = time.process_time()
            labels_N = balanced.clusters(points_NP, arguments.experts, layer, *SETTINGS[name])
            work[name].append(time.process_time() - used)
            distances[name].append(distance(points_NP, labels_N))
        print(
            f"layer {layer}: " + ", ".join(f"{name} {work[name][-1]:.1f} s" for name in SETTINGS), flush=True
        )
    faster = machine.spread([b / a for a, b in zip(work["ours"], work["llama-moe"], strict=True)])
    distance_of = machine.spread(
        [a / b for a, b in zip(distances["ours"], distances["llama-moe"], strict=True)]
    )
    made: dict[str, Any] = {
        "device": "cpu", "experts": arguments.experts, "layers": arguments.layers, "faster": faster[0], "range": faster[1:],
        "distance_of_theirs": distance_of,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
