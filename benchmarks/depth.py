"""Depth on the real parent: held-out loss, realised sparsity and measured tokens/s of DLO, Router-Tuning and static pruning beside the dense-expanded model.

    snakemake --profile profiles/local --cores 2 results/prepare/tokens/manifest.json
    python benchmarks/depth.py                                   # minutes on 2 cores: shows that it works, not what it is worth
    python benchmarks/depth.py --steps 2000 --rows 16 --length 2048 --blocks 64

All candidates are trained on the same rows with the same AdamW, one seed. Then they are timed in turns, so that a busy machine is busy for all: `prefill` is one
forward pass over a batch, `decode` greedy generation of one sequence with a cache. Losses are in inference mode, where the threshold decides. One JSON line a row;
`faster`: than the
dense-expanded model in every turn; a skip that is not faster says so.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import machine
import torch

from moesaic.data import packed
from moesaic.data.sampler import Sample
from moesaic.flow import manifest
from moesaic.generate import decode
from moesaic.model import depth, load, size
from moesaic.model.depth import skip
from moesaic.schema import Depth, Pretrain
from moesaic.train.engine import build
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.streams import TextStream, collate, count_targets

UNTRAINED, BASE = "parent, untrained", "expanded, dense"


def candidates(every: int, anneal: int, share: float, spare: int) -> dict[str, dict[str, Any] | None]:
    """Name -> schema.Depth, or None for the parent as it is, trained alike."""
    new = {"method": "zero", "every": every}
    found: dict[str, dict[str, Any] | None] = {UNTRAINED: None, "parent": None, BASE: {"expand": new}}
    for capacity in (0.9, 0.7):
        own = {
            "capacity": capacity,
            "anneal": anneal,
            "router_lr": 1e-3,
            "label_share": share,
            "spare_first": spare,
        }
        found[f"DLO {capacity}"] = {"expand": new, "skip": own}
        found[f"routers only {capacity}"] = {"skip": own, "train": "routers"}
        found[f"static FFN {capacity}"] = {
            "skip": {"method": "static", "capacity": capacity, "calibration": 8}
        }
    found["static layer 0.9"] = {
        "skip": {"method": "static", "capacity": 0.9, "calibration": 8, "unit": "layer"}
    }
    return found


def train(
    model: Any, own: dict[str, Any] | None, stream: TextStream, arguments: argparse.Namespace
) -> tuple[Any, float]:
    """The trained model, and training tokens/s of the last half of the steps (median)."""
    names = sorted(stream.sizes)

    def rows(index: int) -> list[Any]:
        found = stream.rows(
            [
                Sample(
                    names[(index + i) % len(names)],
                    (index + i) // len(names) % stream.sizes[names[(index + i) % len(names)]],
                )
                for i in range(arguments.rows)
            ]
        )
        cut = arguments.length
        return [row._replace(ids=row.ids[:cut], targets=row.targets[:cut], positions=None) for row in found]

    def text(count: int) -> Any:
        for index in range(count):
            batch = collate(rows(index)[:1], ["text"], 1, 1.0, torch.device("cpu"))
            yield batch.ids_BT, batch.mask_BT

    if own is not None:
        depth.prepare(model, own, text)
    settings = Pretrain(
        steps=arguments.steps, batch=arguments.rows, micro_batch=arguments.rows,
        optimizer={"lr": arguments.lr, "warmup": 2, "weight_decay": 0.0, "freeze_embeddings": True},
    ).model_dump(mode="json")  # fmt: skip
    trainee = Trainee(model.train(), Weights(depth=own["skip"] if own else None))
    engine = build(trainee, settings)
    seconds = []
    for step in range(arguments.steps):
        part = rows(step * arguments.rows)
        batch = collate(part, ["text"] * len(part), count_targets(part), 1.0, engine.device)
        began = time.perf_counter()
        if trainee.depth is not None:
            trainee.depth.begin_step(step)
        _, found = engine.forward_backward(batch, last=True)
        engine.step(step)
        if trainee.depth is not None:
            trainee.depth.after_step(found["depth_L4"].cpu(), step)
        seconds.append(time.perf_counter() - began)
    for item in skip.layers(model).values():
        item.select = None
    tokens = arguments.rows * arguments.length
    return model.eval(), tokens / statistics.median(seconds[len(seconds) // 2 :])


@torch.inference_mode()
def held_out(
    model: Any, blocks: dict[str, Any], count: int, length: int
) -> tuple[float, float, dict[int, float]]:
    """Mean next-token loss of validation blocks, its standard error over blocks, and the share of tokens that ran by layer."""
    losses, ran = [], dict.fromkeys(skip.layers(model), 0.0)
    for item in blocks.values():
        for row in range(min(count, len(item))):
            ids = torch.as_tensor(item.tokens([row]).astype("int64"))[:, :length].to(model.device)
            losses.append(float(model(input_ids=ids, labels=ids, use_cache=False).loss))
            for index, layer in skip.layers(model).items():
                ran[index] += float(layer.ran(1))
    error = statistics.stdev(losses) / len(losses) ** 0.5
    return statistics.mean(losses), error, {index: value / len(losses) for index, value in ran.items()}


@torch.inference_mode()
def prefill(model: Any, ids_BT: torch.Tensor) -> float:
    """Tokens/s of a forward pass without the output head."""
    began = time.perf_counter()
    model.base_model(input_ids=ids_BT, use_cache=False)
    _wait(model)
    return ids_BT.numel() / (time.perf_counter() - began)


@torch.inference_mode()
def generation(model: Any, ids_BT: torch.Tensor, new: int) -> float:
    """Tokens/s of greedy generation with a cache."""
    began = time.perf_counter()
    model.generate(ids_BT, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    _wait(model)
    return new / (time.perf_counter() - began)


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Train, measure, print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parent", type=Path, default=Path("results/dense/model"))
    parser.add_argument("--tokens", type=Path, default=Path("results/prepare/tokens"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/depth.jsonl"))
    parser.add_argument(
        "--only", nargs="+", help="candidates to measure; the dense-expanded model is always one"
    )
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--every", type=int, default=5, help="a new layer after every so many")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--label-share", type=float, default=0.25)
    parser.add_argument(
        "--spare-first",
        type=int,
        default=4,
        help="first layers that never skip: they build the attention sink",
    )
    parser.add_argument("--blocks", type=int, default=3, help="validation blocks of each domain")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--new", type=int, default=24, help="tokens generated for the decode speed")
    arguments = parser.parse_args()
    tokens = manifest.read(arguments.tokens)
    stream = TextStream(tokens, "train", ["speeches"])
    blocks = {name: packed.open_blocks(tokens, name, "validation") for name in sorted(stream.sizes)}
    device = decode.device()
    models: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    wanted = candidates(arguments.every, arguments.steps // 2, arguments.label_share, arguments.spare_first)
    for name, own in wanted.items():
        if arguments.only and name not in (*arguments.only, BASE):
            continue
        settings = Depth(**own).model_dump(mode="json") if own else None
        model, speed = load.load_model(arguments.parent), 0.0
        if name != UNTRAINED:
            model, speed = train(model, settings, stream, arguments)
        model.to(device)
        loss, error, ran = held_out(model, blocks, arguments.blocks, arguments.length)
        count = model.config.num_hidden_layers
        runs = 1.0 - sum(1.0 - share for share in ran.values()) / count
        counted = size.count(model)
        rows[name] = {
            "candidate": name, "layers": count, "steps": 0 if name == UNTRAINED else arguments.steps, "loss": round(loss, 4), "loss_se": round(error, 4),
            "capacity": settings["skip"]["capacity"] if settings and settings["skip"] else 1.0, "ran": round(runs, 4),
            "sparsity_by_layer": {str(index): round(1.0 - share, 3) for index, share in ran.items()},
            "active_parameters": counted.running(ran), "training_tokens_per_second": round(speed, 1),
        }  # fmt: skip
        model.requires_grad_(False)
        models[name] = model
        gc.collect()
        print(
            f"# {name}: loss {loss:.4f} +- {error:.4f}, {runs:.1%} of the FFNs ran, {speed:.0f} training tokens/s",
            flush=True,
        )
    ids = torch.as_tensor(blocks[min(blocks)].tokens(range(arguments.rows)).astype("int64")).to(device)
    for key, measure in {
        "prefill": lambda model: prefill(model, ids),
        "decode": lambda model: generation(model, ids[:1, :64], arguments.new),
    }.items():
        found: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(arguments.repetitions + 1):  # the first one warms up
            for name, model in models.items():
                value = measure(model)
                if turn:
                    found[name].append(value)
        for name, values in found.items():
            # of the same turn, so that what slows the machine for a while slows both
            ratios = sorted(a / b for a, b in zip(values, found[BASE], strict=True))
            rows[name] |= {
                f"{key}_tokens_per_second": round(statistics.median(values), 1),
                f"{key}_of_expanded": round(statistics.median(ratios), 3),
                f"{key}_range": [round(ratios[0], 3), round(ratios[-1], 3)],
            }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", encoding="utf-8") as file:
        for row in rows.values():
            row["faster"] = {
                key: row[f"{key}_range"][0] > 1.0 for key in ("prefill", "decode")
            }  # in every turn
            slow = [key for key, value in row["faster"].items() if not value]
            if row["capacity"] < 1 and slow:
                row["note"] = (
                    f"skips, but is not faster than the dense-expanded model in wall clock: {', '.join(slow)}"
                )
            row["device"] = machine.name()
            line = json.dumps(row)
            print(line, flush=True)
            file.write(line + "\n")


if __name__ == "__main__":
    main()
