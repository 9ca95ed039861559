"""Perplexity before any training and after a little, by construction method, beside the dense parent and a pruned control.

    snakemake --profile profiles/local --cores 2 results/dense/manifest.json results/prepare/tokens/manifest.json
    python benchmarks/construct.py --active 0.5 --seeds 1

Rows already in the output file are not made again, so the run can be interrupted and extended. Calibration text is training text, test text
validation text; the held-out domain is in no calibration and no training. Ratios to the untrained dense parent, geometric mean over the
calibrated domains. Training is the same for all rows of a seed: the same tokens in the same order, AdamW, balance loss 0.01; the dense parent
trained on them is a row too. In the pruned control only what runs is trained. Seconds of a conversion count all its work, also what was taken over
from another conversion of the seed (the pass over the calibration text, the same features).
"""

import argparse
import contextlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from construct_methods import METHODS, shape
from construct_shared import Shared

from moesaic.config import digest
from moesaic.data import packed
from moesaic.evaluate import likelihood
from moesaic.experts import calibration, construct, scale
from moesaic.flow import files, manifest, metrics
from moesaic.generate import decode
from moesaic.model import families, grouped, load
from moesaic.model.lazy import LazyModel
from moesaic.schema import Experts
from moesaic.train.objectives import Batch, Trainee, Weights

scale.FACTORS["off"] = lambda experts, per_token: 0.0
"""For the control: the same number of neurons, always the same ones, refitted, no routing."""

DENSE = "dense parent (control)"
DEVICE = decode.device()
"""Of training and measuring; conversions run on the CPU."""
BATCH = 2
"""Blocks per optimizer step."""
BLOCKS = 4
"""Test blocks of each domain."""
HELD_OUT = "speeches"


@torch.no_grad()
def perplexities(model: Any, test: dict[str, torch.Tensor]) -> dict[str, float]:
    """Perplexity of each domain."""
    return {
        name: math.exp(sum(block_nats(model, part) for part in blocks.split(4)) / blocks[:, 1:].numel())
        for name, blocks in test.items()
    }


def block_nats(model: Any, blocks_BT: torch.Tensor) -> float:
    """Nats of all targets of some blocks."""
    return float(likelihood.block_nats(model, blocks_BT.to(model.device)).sum())


def train(model: Any, blocks_NT: torch.Tensor, rate: float, control: bool, rows: int = BATCH) -> None:
    """Optimizer steps of so many blocks at a constant rate, after a tenth of warm-up where there are more than 100; in bfloat16 products on a GPU."""
    grouped.register()
    trainee = Trainee(model.train(), Weights(balance=0.01))
    if control:
        for part in families.parts(model):
            part.experts.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, (0.9, 0.95))
    device = model.device
    parts = blocks_NT.split(rows)
    warmup = len(parts) // 10 if len(parts) > 100 else 0
    for step, ids_BT in enumerate(parts):
        ids_BT = ids_BT.to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (warmup + 1))
        count = ids_BT[:, 1:].numel()
        batch = Batch(ids_BT[:, :-1], ids_BT[:, 1:], None, [""] * len(ids_BT), count, 1.0)
        with decode.precision(device):
            loss, _ = trainee(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def training_text(tokens: Any, held_out: str, count: int, seed: int) -> torch.Tensor:
    """Blocks of all trained domains in random order, the same for every method."""
    stream = torch.Generator().manual_seed(seed)
    pools = [packed.open_blocks(tokens, name, "train") for name in packed.domains(tokens) if name != held_out]
    length = tokens.metrics["block"]
    number = count // length
    rows = [torch.randperm(len(pool), generator=stream).tolist() for pool in pools]
    chosen = [
        pools[i % len(pools)].tokens([rows[i % len(pools)][i // len(pools) % len(pools[i % len(pools)])]])[0]
        for i in range(number)
    ]
    return torch.stack([torch.as_tensor(item).long() for item in chosen])


def ratios(model: Any, test: Any, parent: Any, held_out: str, suffix: str = "") -> dict[str, Any]:
    """Perplexity over the dense parent's."""
    found = {domain: value / parent[domain] for domain, value in perplexities(model, test).items()}
    known = [math.log(value) for domain, value in found.items() if domain != held_out]
    calibrated = math.exp(sum(known) / len(known))
    return {
        f"calibrated{suffix}": calibrated,
        f"absent{suffix}": found[held_out],
        f"ratios{suffix}": found,
    }


def row(
    dense: LazyModel, tokens: Any, arguments: Any, name: str, active: float, seed: int, test: Any, parent: Any
) -> dict[str, Any]:
    """Convert once, measure, train, measure."""
    out: dict[str, Any] = {"method": name, "active": active, "seed": seed, **options(vars(arguments))}
    if name == DENSE:
        model, control = load.load_model(dense.folder).to(DEVICE), False
    else:
        settings = dict(METHODS[name])
        control = settings.get("scale") == "off"
        out["sizes"] = shape(settings.pop("shape", "equal"), active, dense.config.intermediate_size)
        factor = settings.pop("scale", "times-k")
        experts = Experts(**settings, **out["sizes"], calibration={"tokens": arguments.tokens})
        merged = experts.model_dump(mode="json") | {"scale": factor}
        text = calibration.blocks(tokens, [arguments.held_out], merged["calibration"], seed)
        tokenizer = load.load_tokenizer(dense.folder)
        shared: Shared = arguments.shared
        with tempfile.TemporaryDirectory(prefix="work-", dir=shared.root) as place:
            folder = Path(place)
            (folder / "work").mkdir()
            shared.begin(seed, arguments.tokens, folder / "work")
            began = time.monotonic()
            made = construct.convert(
                dense, merged, text, seed, folder, folder / "work", arguments.threads, tokenizer
            )
            out["seconds"] = round(time.monotonic() - began + shared.seconds, 1)
            model = made.model.to(DEVICE)
            out |= ratios(model, test, parent, arguments.held_out)
    if arguments.train_tokens:
        blocks_NT = training_text(tokens, arguments.held_out, arguments.train_tokens, seed)
        train(model, blocks_NT, arguments.rate, control, arguments.batch)
        out |= ratios(model, test, parent, arguments.held_out, "_after")
    return out


def options(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's numbers depend on besides method, size and seed. Args: told: a row, in which older ones lack the defaults, or the arguments."""
    trained = told.get("train_tokens", 0)
    return {
        "tokens": told["tokens"],
        "train_tokens": trained,
        "rate": told["rate"] if trained else None,
        "batch": told.get("batch", BATCH) if trained else None,
        "blocks": told.get("blocks", BLOCKS),
        "held_out": told.get("held_out", HELD_OUT),
    }


def heading(told: Mapping[str, Any]) -> str:
    """Of a table: the calibration tokens, and each option that is not as it usually is."""
    usual = {"train_tokens": (0, 8192), "rate": (None, 1e-4), "batch": (None, BATCH), "blocks": (BLOCKS,), "held_out": (HELD_OUT,)}  # fmt: skip
    changed = [f"{key} {told[key]}" for key, values in usual.items() if told[key] not in values]
    return ", ".join([f"{told['tokens']} calibration tokens", *changed])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean over the seeds, range where there are several."""
    lines = [
        "| active | method | seeds | calibrated | absent | trained: calibrated | trained: absent | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    order = [DENSE, *METHODS]
    keys = dict.fromkeys((item["active"], item["method"]) for item in rows)
    for active, name in sorted(keys, key=lambda key: (key[0], order.index(key[1]))):
        own = [item for item in rows if (item["active"], item["method"]) == (active, name)]

        def cell(key: str, digits: int = 2, own: list[dict[str, Any]] = own) -> str:
            values = [item[key] for item in own if key in item]
            if not values:
                return ""
            mean, low, high = (
                f"{value:,.{digits if value < 100 else 0}f}"
                for value in (sum(values) / len(values), min(values), max(values))
            )
            return mean if len(values) == 1 or not digits else f"{mean} ({low}-{high})"

        cells = [cell(key) for key in ("calibrated", "absent", "calibrated_after", "absent_after")]
        lines.append(f"| {active:.0%} | {name} | {len(own)} | {' | '.join(cells)} | {cell('seconds', 0)} |")
    return "\n".join(lines)


def main() -> None:
    """Make the missing rows, then print the table of all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/construct.jsonl"))
    parser.add_argument("--held-out", default=HELD_OUT)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[DENSE, *METHODS],
        help="as named in METHODS, or the beginning of a name",
    )
    parser.add_argument("--active", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=10240, help="calibration tokens")
    parser.add_argument("--train-tokens", type=int, default=8192, help="0: no training")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=BATCH, help="blocks per optimizer step")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="test blocks of each domain")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--shared",
        type=Path,
        help="folder for what conversions of a seed have in common, a gigabyte a seed, for several processes at once; default: a temporary one",
    )
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.touch()
    if not arguments.table:
        with contextlib.ExitStack() as stack:
            if arguments.shared is None:
                arguments.shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="construct-")))
            steps = [arguments.results / name / manifest.NAME for name in ("dense", "prepare/tokens")]
            made_for = digest([arguments.held_out, *(files.sha256(path) for path in steps)])
            arguments.shared = Shared(arguments.shared / made_for[:12])
            make(arguments)
    rows = list(metrics.read(arguments.out))
    kinds = {tuple(options(item).items()): options(item) for item in rows}
    for kind in sorted(kinds.values(), key=lambda kind: (kind["tokens"], str(kind))):
        print(f"\n{heading(kind)}\n")
        print(table([item for item in rows if options(item) == kind]))


def make(arguments: Any) -> None:
    """Add the missing rows to the output file, from which several processes may work."""
    torch.set_num_threads(arguments.threads)
    tokens = manifest.read(arguments.results / "prepare" / "tokens")
    dense = LazyModel(arguments.results / "dense" / "model")
    test = {}
    for name in packed.domains(tokens):
        stored = packed.open_blocks(tokens, name, "validation")
        test[name] = torch.from_numpy(stored.tokens(list(range(min(arguments.blocks, len(stored)))))).long()
    parent = perplexities(load.load_model(arguments.results / "dense" / "model").to(DEVICE), test)
    print("dense parent:", {name: round(value, 2) for name, value in parent.items()}, flush=True)
    wanted = [
        (seed, active, name)
        for seed in range(arguments.seeds)
        for active in arguments.active
        for name in METHODS
        if active == 0.75 or METHODS[name].get("shape") not in ("ends-dense", "start-dense")
    ]
    wanted = [(seed, 1.0, DENSE) for seed in range(arguments.seeds)] + wanted
    for seed, active, name in wanted:
        rows = list(metrics.read(arguments.out))
        done = {
            (item["seed"], item["active"], item["method"])
            for item in rows
            if options(item) == options(vars(arguments))
        }
        if (seed, active, name) in done or not name.startswith(tuple(arguments.methods)):
            continue
        made = row(dense, tokens, arguments, name, active, seed, test, parent)
        with arguments.out.open("a") as file:
            file.write(json.dumps(made) + "\n")
        shown = {
            key: round(made[key], 2)
            for key in ("calibrated", "absent", "calibrated_after", "absent_after")
            if key in made
        }
        print(f"{active:.0%} {name}, seed {seed}: {shown}", flush=True)


if __name__ == "__main__":
    main()
