"""From a maximally skewed router: what each balancing method makes of the load, and what it costs in loss.

    snakemake --profile profiles/local --cores 2 results/dense/manifest.json results/prepare/tokens/manifest.json
    python benchmarks/balance.py

The dense parent's last FFNs, upcycled: half of each is shared, the other half copied 8 times, 2 of the copies run. The start is the parent itself
whatever the routers choose; in every MoE layer the same 2 experts win for every token (CV 1.73, the largest there is). All runs see the same text in the same order. Load and loss are measured on validation text of all trained domains, without noise. The losses are means
over the MoE layers here; the weight is 0.01 times their number, as in LLaMA-MoE, which adds the layers up. Rows already in the output file are not made again.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from moesaic.data import packed
from moesaic.experts import calibration, construct
from moesaic.flow import manifest, metrics
from moesaic.generate import decode
from moesaic.model import families, load
from moesaic.model.lazy import LazyModel
from moesaic.schema import Experts
from moesaic.train import balance
from moesaic.train.objectives import Batch, Trainee, Weights
from moesaic.train.policy import DEFAULTS

METHODS: dict[str, dict[str, Any]] = {
    "none": {"router": {}},
    "switch": {"weight": 0.01, "router": {"balance": "switch"}},
    "importance-load": {"weight": 0.01, "router": {"balance": "importance-load"}},
    "importance-load, learned noise": {"weight": 0.01, "router": {"balance": "importance-load", "noise": "learned"}},
    "none, sigmoid": {"router": {}, "family": "glm4_moe"},
    "bias": {"router": {"balance": "bias", "bias_rate": 0.01}, "family": "glm4_moe"},
    "bias, rate 0.003": {"router": {"balance": "bias", "bias_rate": 0.003}, "family": "glm4_moe"},
}  # fmt: skip
"""Each method beside `none` in the same architecture."""
KEYS = ("moe_layers", "steps", "length", "rate", "margin")
"""What a row depends on besides method and seed."""
EXPERTS = {
    "split": "copy", "router": "random", "scale": "none", "shared": 768, "experts": 8, "granularity": 1, "per_token": 2,
}  # fmt: skip
FAMILY = "qwen2_moe"
"""Of the methods that do not name one; both have layers left dense (glm4_moe at the beginning only)."""


def text(tokens: Any, split: str, count: int, length: int, seed: int) -> torch.Tensor:
    """Blocks [N, length] of all trained domains in turn."""
    names = [name for name in packed.domains(tokens) if name != "speeches"]
    stream = torch.Generator().manual_seed(seed)
    rows = []
    for name in names:
        stored = packed.open_blocks(tokens, name, split)
        order = torch.randperm(len(stored), generator=stream)[: -(-count // len(names))].tolist()
        rows.append(torch.as_tensor(stored.tokens(order)).long()[:, :length])
    blocks = torch.cat(rows)
    return blocks[torch.randperm(len(blocks), generator=stream)[:count]]


def skew(model: Any, ids_BT: torch.Tensor, margin: float) -> None:
    """Point the first K rows of every router along the mean of its input: their logits lie `margin` above the others'."""
    for part in families.parts(model):
        seen: list[torch.Tensor] = []
        handle = part.router.register_forward_pre_hook(lambda _m, x, seen=seen: seen.append(x[0]))
        with torch.no_grad():
            model(input_ids=ids_BT, use_cache=False)
            handle.remove()
            mean_D = seen[0].reshape(-1, part.router.weight.shape[1]).mean(dim=0)
            part.router.weight.mul_(0.1)
            part.router.weight[: EXPERTS["per_token"]] += margin * mean_D / mean_D.square().sum()


def as_batch(ids_BT: torch.Tensor, seed: int) -> Batch:
    """A whole step: each token is to be told from those before it."""
    return Batch(ids_BT[:, :-1], ids_BT[:, 1:], None, [""] * len(ids_BT), ids_BT[:, 1:].numel(), 1.0, seed)


@torch.no_grad()
def measure(trainee: Trainee, blocks_NT: torch.Tensor) -> tuple[float, float, float]:
    """Cross entropy, load CV (mean over the layers) and the CV of the worst layer."""
    trainee.eval()
    nats, targets, load = 0.0, 0, 0.0
    for ids_BT in blocks_NT.split(4):
        _, found = trainee(as_batch(ids_BT, 0))
        nats += float(found["nll_B"].sum())
        targets += int(found["targets_B"].sum())
        load = load + found["load_LE"]
    trainee.train()
    cv_L = balance.load_cv(load)
    return nats / targets, float(cv_L.mean()), float(cv_L.max())


def converted(arguments: Any, family: str, seed: int, place: Path) -> Path:
    """The start of a seed in an architecture, made once."""
    folder = place / f"{family}-{seed}"
    if not folder.exists():
        tokens = manifest.read(arguments.results / "prepare" / "tokens")
        dense = LazyModel(arguments.results / "dense" / "model")
        experts = Experts(
            **EXPERTS,
            family=family,
            dense_layers=list(range(dense.layers - arguments.moe_layers)),
            calibration={"tokens": 7680},
        ).model_dump(mode="json")
        (folder / "work").mkdir(parents=True)
        calibrated = calibration.blocks(tokens, ["speeches"], experts["calibration"], seed)
        construct.convert(dense, experts, calibrated, seed, folder, folder / "work")
    return folder / "model"


def train_one(arguments: Any, name: str, seed: int, place: Path) -> dict[str, Any]:
    """Skew, train, measure."""
    settings = METHODS[name]
    tokens = manifest.read(arguments.results / "prepare" / "tokens")
    weight = settings.get("weight", 0.0) * arguments.moe_layers
    device = decode.device()
    model = load.load_model(converted(arguments, settings.get("family", FAMILY), seed, place))
    model = model.float().to(device)
    training = text(tokens, "train", arguments.steps * 2, arguments.length + 1, seed).to(device)
    test = text(tokens, "validation", 20, arguments.length + 1, 0).to(device)
    skew(model, training[:4], arguments.margin)
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    trainee = Trainee(model, Weights(balance=weight, router=DEFAULTS | settings["router"])).train().to(device)
    start = measure(trainee, test)
    routers = {id(part.router.weight) for part in families.parts(model)}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in routers]
    known = {id(p) for p in rest}
    fast = [p for p in trainee.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": fast}, {"params": rest, "lr": 0.1 * arguments.rate}]
    optimizer = torch.optim.AdamW(groups, arguments.rate, (0.9, 0.95))
    curve = []
    for step, ids_BT in enumerate(training.split(2)):
        loss, found = trainee(as_batch(ids_BT, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        trainee.policy.after_step(found["load_LE"])
        curve.append(round(float(balance.load_cv(found["load_LE"]).mean()), 3))
    end = measure(trainee, test)
    out: dict[str, Any] = {
        "method": name,
        "seed": seed,
        "weight": weight,
        **{key: getattr(arguments, key) for key in KEYS},
    }
    for when, (nats, cv, worst) in (("before", start), ("after", end)):
        out |= {
            f"loss_{when}": round(nats, 4),
            f"cv_{when}": round(cv, 3),
            f"worst_cv_{when}": round(worst, 3),
        }
    return out | {"curve": curve}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, mean over the seeds; loss beside that without balancing in the same architecture and seed."""
    lines = [
        "| method | seeds | CV before | CV after | worst layer | loss | beside none |",
        "|---|---|---|---|---|---|---|",
    ]
    base = {
        (METHODS[r["method"]].get("family"), r["seed"]): r["loss_after"]
        for r in rows
        if r["method"].startswith("none")
    }
    for name in METHODS:
        own = [r for r in rows if r["method"] == name]
        if not own:
            continue
        means = [
            statistics.fmean(r[key] for r in own)
            for key in ("cv_before", "cv_after", "worst_cv_after", "loss_after")
        ]
        beside = [
            r["loss_after"] / base[METHODS[name].get("family"), r["seed"]] - 1
            for r in own
            if (METHODS[name].get("family"), r["seed"]) in base
        ]
        cells = [f"{value:.2f}" for value in means[:3]] + [
            f"{means[3]:.3f}",
            f"{statistics.fmean(beside):+.2%}" if beside else "",
        ]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Make the missing rows, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/balance.jsonl"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--moe-layers", type=int, default=6, help="how many of the last layers")
    parser.add_argument("--steps", type=int, default=150, help="of two blocks each")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3, help="of the routers; a tenth for the rest")
    parser.add_argument("--margin", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.touch()
    with tempfile.TemporaryDirectory(prefix="balance-") as place:
        make(arguments, Path(place))
    chosen = {key: getattr(arguments, key) for key in KEYS}
    print(table([row for row in metrics.read(arguments.out) if chosen.items() <= row.items()]))


def make(arguments: Any, place: Path) -> None:
    """Add the missing rows to the output file."""
    for seed in range(arguments.seeds):
        for name in arguments.methods:
            wanted = {"method": name, "seed": seed, **{key: getattr(arguments, key) for key in KEYS}}
            if any(wanted.items() <= row.items() for row in metrics.read(arguments.out)):
                continue
            made = train_one(arguments, name, seed, place)
            with arguments.out.open("a") as file:
                file.write(json.dumps(made) + "\n")
            print(
                {key: value for key, value in made.items() if key != "curve"}, made["curve"][::8], flush=True
            )


if __name__ == "__main__":
    main()
