"""Which distillation loss: a dense SmolLM2 teaches a sparser MoE made from it; every loss at equal tokens, over seeds.

    snakemake --profile profiles/local --cores 2 results/dense/manifest.json results/prepare/tokens/manifest.json
    python studies/distillation.py --steps 60 --seeds 0 1 2          # one JSON line per finished run; killed, it goes on where it stopped
    python studies/distillation.py --table                           # means and 95 % intervals over the seeds
    python studies/distillation.py --table --plot docs/studies/distillation --steps 60
    python studies/distillation.py --offline --rows 4                # training loss beside the resident teacher and from its top-64 cache

All runs of a seed see the same rows in the same order. They are runs of the workflow's own steps, so checkpoints, resume and telemetry are its own.
The rows on sampled answers (sampled.py) end at the same number of tokens and ask the questions of results/prepare/chat, which also ROUGE-L needs:

    snakemake --profile profiles/local --cores 2 results/prepare/chat/manifest.json
    python studies/distillation.py --losses none sft dpkd-fixed dpkd-refreshed dpkd-guarded --questions 40
"""

import argparse
import dataclasses
import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import sampled
import torch

from moesaic.data import packed
from moesaic.data.sampler import Sample
from moesaic.distill import cache, teachers
from moesaic.evaluate import likelihood
from moesaic.flow import manifest, metrics
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import STEPS, execute
from moesaic.generate import decode
from moesaic.model import load
from moesaic.schema import Distill, Experts, Offline
from moesaic.train.objectives import IGNORE, TELEMETRY, Trainee, Weights
from moesaic.train.streams import TaughtStream, TextStream, collate, count_targets

EXPERTS = {
    "split": "activation", "router": "least-squares", "reconstruct": "least-squares", "shared": 512, "experts": 16, "per_token": 4,
    "calibration": {"tokens": 10240},
}  # fmt: skip
"""The default configuration's first variant; the student runs fewer of its experts."""
LOSSES: dict[str, dict[str, Any]] = {
    "none": {},
    "sft": {"loss": "sft"},
    "kd": {"loss": "kd"},
    "kd, half language model": {"loss": "kd", "language_model": 0.5},
    "rkl": {"loss": "rkl"},
    "jsd": {"loss": "jsd"},
    "akl": {"loss": "akl"},
    "skl": {"loss": "skl"},
    "srkl": {"loss": "srkl"},
    "cald": {"loss": "cald"},
    "abkd": {"loss": "abkd"},
    "dpkd-token, half language model": {"loss": "dpkd-token", "language_model": 0.5},
}
"""`none` is the student before training. `cald` sees given text only here, so it is half a skew KL; `seqkd` is `sft` on other text."""
HELD_OUT = "speeches"
OPTIONS = ("steps", "batch", "rate", "per_token", "blocks")
FIGURES = (
    "bits_per_byte",
    "held_out_bits_per_byte",
    *(key.removesuffix("_B") for key in TELEMETRY),
    "rougeL",
    "seconds_per_step",
)


def settings(arguments: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Settings of the step `distill`."""
    own = {
        "teacher": "dense", "data": "text", "student": {"per_token": arguments.per_token}, "steps": arguments.steps, "batch": arguments.batch,
        "micro_batch": arguments.micro_batch, "save_every": 20, "validation_batches": 1, "mixture": {"weights": "uniform"},
        "optimizer": {"lr": arguments.rate, "warmup": max(1, arguments.steps // 10), "freeze_embeddings": True},
    }  # fmt: skip
    return Distill(**(own | changes)).model_dump(mode="json")


def constructed(arguments: Any) -> Manifest:
    """The MoE that the student starts from, made once."""
    out = arguments.work / "construct"
    if not (out / manifest.NAME).exists():
        own = Experts(**EXPERTS).model_dump(mode="json")
        inputs = {
            "dense": arguments.results / "dense" / manifest.NAME,
            "tokens": arguments.results / "prepare/tokens" / manifest.NAME,
        }
        execute(STEPS["construct"], {"experts": own, "held_out": [HELD_OUT], "seed": 17}, inputs, out)
    return manifest.read(out)


def distill(arguments: Any, name: str, changes: dict[str, Any], seed: int) -> Path:
    """One run of the step; returns its folder."""
    out = arguments.work / f"{name}-{seed}".replace(", ", "-").replace(" ", "-") / "distill"
    inputs = {
        "model": arguments.work / "construct" / manifest.NAME,
        "tokens": arguments.results / "prepare/tokens" / manifest.NAME,
        "dense": arguments.results / "dense" / manifest.NAME,
    }
    names = packed.domains(manifest.read(inputs["tokens"]))
    own = {
        "distill": settings(arguments, changes),
        "like": dict.fromkeys(names),
        "held_out": [HELD_OUT],
        "seed": seed,
    }
    execute(STEPS["distill"], own, inputs, out)
    return out


@torch.no_grad()
def measure(arguments: Any, model: Any) -> dict[str, float]:
    """Bits per byte on validation text of the trained domains and of the held-out one; KLs and entropy beside the teacher, mean of the trained ones."""
    tokens = manifest.read(arguments.results / "prepare" / "tokens")
    blocks = {name: packed.open_blocks(tokens, name, "validation") for name in packed.domains(tokens)}
    device = decode.device()
    model.to(device)
    found = likelihood.measure(model.eval(), blocks, arguments.blocks, 2)
    bits = {name: float(item.nats_N.sum() / math.log(2) / item.bytes_N.sum()) for name, item in found.items()}
    teacher = load.load_model(arguments.results / "dense" / "model").to(device)
    trainee = Trainee(model, Weights(), teacher).eval()
    stream = TextStream(tokens, "validation", [HELD_OUT], document_mask=True)
    means = []
    for name, size in stream.sizes.items():
        sums = np.zeros(len(TELEMETRY) + 1)
        for row in range(min(arguments.blocks, size)):
            rows = stream.rows([Sample(name, row)])
            _, told = trainee(collate(rows, [name], count_targets(rows), 0.0, device))
            sums += [float(told[key].sum()) for key in (*TELEMETRY, "targets_B")]
        means.append(sums[:-1] / sums[-1])
    average = np.mean(means, axis=0)
    trained = [value for name, value in bits.items() if name != HELD_OUT]
    return {"bits_per_byte": statistics.mean(trained), "held_out_bits_per_byte": bits[HELD_OUT]} | {
        key.removesuffix("_B"): float(value) for key, value in zip(TELEMETRY, average, strict=True)
    }


def row(arguments: Any, name: str, seed: int) -> dict[str, Any]:
    """Train and measure."""
    from moesaic.distill import students
    from moesaic.train import stage

    began = time.monotonic()
    found: dict[str, Any] = {"loss": name, "seed": seed, **options(arguments)}
    if name == "none":
        tokens = manifest.read(arguments.results / "prepare" / "tokens")
        own = settings(arguments, {})["student"]
        model = students.make(
            stage.load_stage_model(constructed(arguments)), own, TextStream(tokens, "train", [HELD_OUT])
        )
        told = measure(arguments, model)
        return (
            found
            | {"tokens": 0, "seconds_per_step": None}
            | {"rougeL": sampled.rouge(arguments, name, seed, model, constructed(arguments))}
            | told
        )
    out = (
        sampled.distill(arguments, constructed(arguments).folder, name, seed)
        if name in sampled.SAMPLED
        else distill(arguments, name, LOSSES[name], seed)
    )
    series = metrics.series(out / "work" / metrics.NAME)
    seconds = [
        sum(
            dict(series[key]).get(step, 0.0)
            for key in ("seconds/forward", "seconds/backward", "seconds/optimizer")
        )
        for step, _ in series["train/loss"]
    ]
    rounds = manifest.read(out).metrics.get("rounds", [])
    found |= {
        "tokens": int(series["train/tokens"][-1][1]) * max(1, len(rounds)),
        "seconds_per_step": round(statistics.median(seconds), 3),
    }
    if rounds:
        found["steps_by_round"] = [told["steps"] for told in rounds]
    model = load.load_model(out / "model")
    found |= measure(arguments, model) | {
        "rougeL": sampled.rouge(arguments, name, seed, model, manifest.read(out))
    }
    if not arguments.keep:
        shutil.rmtree(arguments.work / f"{name}-{seed}" if rounds else out.parent)
    return found | {"minutes": round((time.monotonic() - began) / 60, 2)}


def options(arguments: Any, names: Sequence[str] = OPTIONS) -> dict[str, Any]:
    """What a run's numbers depend on besides loss and seed."""
    return {key: getattr(arguments, key) for key in names}


def study(arguments: Any) -> None:
    """All runs that are not in the file yet."""
    same = options(arguments)
    constructed(arguments)
    for seed in arguments.seeds:
        for name in arguments.losses:
            if name == "none" and seed != arguments.seeds[0]:
                continue  # there is nothing random in it
            if not common.missing(arguments.out, [{"loss": name, "seed": seed, **same}]):
                continue
            made = row(arguments, name, seed)
            common.append(arguments.out, made)
            print(json.dumps(made), flush=True)


def shown(arguments: Any) -> list[dict[str, Any]]:
    """Finished runs with the student and the validation text that are asked for."""
    same = options(arguments, ("per_token", "blocks"))
    return [item for item in common.rows(arguments.out) if same.items() <= item.items()]


def table(arguments: Any) -> None:
    """Means over the seeds with Student's 95 % intervals, best held-out text first; of the student and the validation text that are asked for."""
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for item in shown(arguments):
        runs.setdefault(tuple(item[key] for key in ("loss", "steps", "batch", "rate")), []).append(item)
    print(
        "| loss | steps | batch | rate | seeds | "
        + " | ".join(FIGURES)
        + " |\n|"
        + "---|" * (5 + len(FIGURES))
    )
    for (name, steps, batch, rate), items in sorted(
        runs.items(), key=lambda pair: statistics.mean(i["held_out_bits_per_byte"] for i in pair[1])
    ):
        cells = [
            common.cell([item[key] for item in items if item.get(key) is not None], 4) or "-"
            for key in FIGURES
        ]
        print(f"| {name} | {steps} | {batch} | {rate:g} | {len(items)} | " + " | ".join(cells) + " |")
    if arguments.plot:
        plot(arguments)


def plot(arguments: Any) -> None:
    """Bits per byte and the divergences from the teacher of the runs of --steps, as NAME-bits.svg and NAME-kl.svg."""
    found = [item | {"method": item["loss"]} for item in shown(arguments) if item["steps"] == arguments.steps]
    means = {
        name: statistics.mean(item["bits_per_byte"] for item in found if item["method"] == name)
        for name in {item["method"] for item in found}
    }
    names = sorted(means, key=means.__getitem__)
    bits = {"bits_per_byte": "trained domains", "held_out_bits_per_byte": "held-out domain"}
    common.dots(
        found, names, bits, "bits per byte", arguments.plot.with_name(f"{arguments.plot.name}-bits.svg")
    )
    kl = {"forward_kl": "KL(teacher, student)", "reverse_kl": "KL(student, teacher)"}
    common.dots(found, names, kl, "nats per token", arguments.plot.with_name(f"{arguments.plot.name}-kl.svg"))


@torch.no_grad()
def offline(arguments: Any) -> None:
    """Training loss of one step on the same rows beside the resident teacher, from its cache with drawn tokens, and from its likeliest tokens alone.

    The student is the parent without one layer; the cache is made and read as the workflow does it.
    """
    dense, tokens = (arguments.results / name / manifest.NAME for name in ("dense", "prepare/tokens"))
    own = Offline(top=64, tail=16, max_rows=arguments.rows, batch=2).model_dump(mode="json")
    shared = {
        "temperature": 1.0,
        "teacher": "dense",
        "data": "text",
        "seed": 0,
        "document_mask": True,
        "held_out": [HELD_OUT],
    }
    folder = arguments.work / f"teacher-{arguments.rows}-16"
    if not (folder / manifest.NAME).exists():
        execute(STEPS["teacher"], own | shared, {"model": dense, "tokens": tokens}, folder)
    made = manifest.read(folder)
    print(json.dumps({key: value for key, value in made.metrics.items() if key != "rows"}), flush=True)
    stream = TaughtStream(
        TextStream(manifest.read(tokens), "train", [HELD_OUT], True), cache.Cache(made), "train"
    )
    model = load.load_model(arguments.results / "dense" / "model")
    sums: dict[str, np.ndarray] = {}
    for name, size in stream.sizes.items():
        for row in range(size):
            rows = stream.rows([Sample(name, row)])
            batch = collate(rows, [name], count_targets(rows), 0.0, torch.device("cpu"))
            assert isinstance(batch.taught, teachers.Cached)
            said, top = batch.taught, own["top"]
            alone = dataclasses.replace(
                said, ids_NK=said.ids_NK[:, :top], log_p_NK=said.log_p_NK[:, :top], sampled=0
            )
            full = teachers.Teacher(model).taught(batch, batch.targets_BT != IGNORE)
            with teachers.without_layer(model, arguments.layer):
                for kind, taught in (
                    ("resident", full),
                    ("64 likeliest, 16 drawn", said),
                    ("64 likeliest alone", alone),
                ):
                    _, told = Trainee(model, Weights(kl=1.0)).train()(
                        dataclasses.replace(batch, taught=taught)
                    )
                    found = np.array([float(told[key].sum()) for key in ("nll_B", "distill_B", "targets_B")])
                    sums[kind] = sums.get(kind, 0.0) + found
    exact = sums["resident"]
    for kind, (nll, kl, count) in sums.items():
        line = {"teacher": kind, "tokens": int(count), "cross_entropy": nll / count, "kl": kl / count}
        for share in (0.0, 0.5):
            line[f"relative, {share} cross entropy"] = (share * nll + (1 - share) * kl) / (
                share * exact[0] + (1 - share) * exact[1]
            ) - 1
        print(
            json.dumps(
                {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="with dense/ and prepare/tokens/"
    )
    parser.add_argument("--work", type=Path, default=Path("results/studies/distillation"))
    parser.add_argument("--out", type=Path, default=Path("studies/distillation.jsonl"))
    parser.add_argument(
        "--losses", nargs="+", default=list(LOSSES), choices=[*LOSSES, *sampled.SAMPLED], metavar="LOSS"
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config/config.yaml"),
        help="sampled answers: model and data of --results",
    )
    parser.add_argument("--prompts", type=int, default=200, help="sampled answers: questions per chat source")
    parser.add_argument("--new-tokens", type=int, default=64, help="sampled answers: most tokens of one")
    parser.add_argument(
        "--questions", type=int, default=0, help="development questions for ROUGE-L; 0: not measured"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4, help="blocks per step")
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--per-token", type=int, default=2, help="experts per token of the student, of 4")
    parser.add_argument("--blocks", type=int, default=4, help="validation blocks per domain")
    parser.add_argument("--rows", type=int, default=8, help="--offline: rows per domain in the cache")
    parser.add_argument("--layer", type=int, default=14, help="--offline: layer that the student lacks")
    parser.add_argument("--keep", action="store_true", help="keep the trained models")
    parser.add_argument("--table", action="store_true")
    parser.add_argument(
        "--plot", type=Path, metavar="NAME", help="with --table: NAME-bits.svg and NAME-kl.svg"
    )
    parser.add_argument("--offline", action="store_true")
    arguments = parser.parse_args()
    table(arguments) if arguments.table else offline(arguments) if arguments.offline else study(arguments)


if __name__ == "__main__":
    main()
