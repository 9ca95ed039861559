"""Compare ways to train one stage (mixtures, say) at equal tokens over seeds: held-out loss of each domain or dataset, with intervals.

    python studies/stages.py studies/sft_mixtures.yaml         # everything in it; hours on a CPU
    python studies/stages.py studies/pretrain_mixtures.yaml    # about an hour on two cores
    python studies/stages.py studies/sft_mixtures.yaml --set stage.tokens=4000 --set seeds=[0] --out results/studies/try
    python studies/stages.py studies/sft_mixtures.yaml --table # table and figure of what is finished

One JSON line for each finished run (`runs.jsonl` in --out): started again, the study goes on with the first run that is missing, and with that
run's own checkpoint where there is one. A run whose settings changed is made anew. Data, parent and MoE lie in results/ of the working directory, as
in any run of the base configuration, and replace what another configuration left there. To share the work, give each process its own --only and
--out, and join the `runs.jsonl` files.

Intervals are 95 % of Student's t over the seeds; differences to the first way are paired by seed. With fewer than two seeds there are none.
"""

import argparse
import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import yaml

from moesaic import config
from moesaic.errors import InputError
from moesaic.flow import manifest, metrics, paths
from moesaic.flow.step import STEPS, execute

log = logging.getLogger("moesaic.study")

KEYS = {"base", "config", "step", "variant", "seeds", "stage", "runs", "keep_models"}
TRAINED = ("pretrain", "tune")
RUNS = "runs.jsonl"
ROOT = Path(__file__).parents[1]
"""What `base` is relative to."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="a YAML file, such as studies/sft_mixtures.yaml")
    parser.add_argument("--out", type=Path, help="default: results/studies/NAME of the file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the study"
    )
    parser.add_argument("--only", action="append", default=[], metavar="RUN", help="these runs only")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        study = load(arguments.study, arguments.set)
        out = arguments.out or Path("results", "studies", arguments.study.stem)
        if not arguments.table:
            import torch

            torch.set_num_threads(arguments.threads)
            train(study, out, arguments.only)
        show(study, out)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def load(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The study's settings. Raises InputError for an unknown or missing key."""
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    for text in overrides:
        study = config.merge(study, config.parse_override(text))
    if set(study) != KEYS:
        raise InputError(
            f"{path}: keys {sorted(set(study) ^ KEYS)} are missing or unknown; known: {sorted(KEYS)}"
        )
    base = Path(study["base"])
    study["base"] = base if base.is_absolute() else ROOT / base
    if study["step"] not in TRAINED:
        raise InputError(f"{path}: step: {study['step']!r} is none of {', '.join(TRAINED)}")
    return dict(study)


# ---------------------------------------------------------------- training


def train(study: dict[str, Any], out: Path, only: Sequence[str] = ()) -> None:
    """All runs that are not finished, seed by seed, so that an interrupted study compares all ways."""
    unknown = sorted(set(only) - set(study["runs"]))
    if unknown:
        raise InputError(f"--only {unknown[0]}: no such run; runs: {', '.join(study['runs'])}")
    prepare(study)
    out.mkdir(parents=True, exist_ok=True)
    for seed in study["seeds"]:
        for name in study["runs"]:
            if only and name not in only:
                continue
            plan = planned(study, name)
            settings = plan.settings | {"seed": seed}
            digest = config.digest({"settings": settings, "inputs": common.digests(plan.inputs)})
            if any(line["digest"] == digest for line in finished(out)):
                log.info("%s, seed %d: finished before", name, seed)
                continue
            folder = out / f"{name}-{seed}" / study["step"]
            execute(STEPS[study["step"]], settings, plan.inputs, folder)
            line = summary(folder, name, seed) | {"digest": digest}
            common.append(out / RUNS, line)
            if not study["keep_models"]:
                shutil.rmtree(folder / "model")


def prepare(study: dict[str, Any]) -> None:
    """The steps that all runs share: data, dense parent, construction; those that are up to date are left alone."""
    base = config.load(study["base"], study["config"])
    for step in ("dense", "documents", "tokens", *(["chat"] if study["step"] == "tune" else []), "construct"):
        plan = paths.plan_step(base, step, study["variant"] if step == "construct" else None)
        if common.current(plan):
            continue
        execute(STEPS[step], plan.settings, plan.inputs, plan.out)


def planned(study: dict[str, Any], name: str) -> paths.Plan:
    """The stage in one of the ways, straight after the construction."""
    step = study["step"]
    own = config.merge(study["stage"], study["runs"][name])
    changes = {"stages": ["construct", step], "variants": {study["variant"]: {step: own}}}
    return paths.plan_step(
        config.load(study["base"], config.merge(study["config"], changes)), step, study["variant"]
    )


def summary(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """A finished run in one line: held-out loss by domain, tokens, and how the weights moved."""
    found = metrics.series(folder / "work" / metrics.NAME)
    done = manifest.read(folder / manifest.NAME).metrics

    def last(prefix: str) -> dict[str, float]:
        return {key.removeprefix(prefix): v[-1][1] for key, v in found.items() if key.startswith(prefix)}

    weights = {key.split("/", 2)[2]: v for key, v in found.items() if key.startswith("mixture/weight/")}
    return {
        "run": name,
        "seed": seed,
        "steps": done["steps"],
        "tokens": done["tokens"],
        "loss": last("valid/loss/"),
        "drawn": done["drawn"],
        "epochs": done["epochs"],
        "weights": {key: changes(values) for key, values in weights.items()},
        "gap": last("mixture/gap/"),
        "gap_error": last("mixture/gap_error/"),
        "seconds_probing": sum(value for _, value in found.get("seconds/probe", [])),
    }


def changes(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The first value, each one that differs from the one before, and the last."""
    kept = [v for i, v in enumerate(values) if i in (0, len(values) - 1) or v[1] != values[i - 1][1]]
    return [(step, value) for step, value in kept]


def finished(out: Path) -> list[dict[str, Any]]:
    """The lines of finished runs, the newest of each run and seed."""
    newest = {(line["run"], line["seed"]): line for line in metrics.read(out / RUNS)}
    return list(newest.values())


# ---------------------------------------------------------------- table and figure


def losses(lines: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, float]]]:
    """run -> seed -> domain -> held-out loss, and their mean as `mean`."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for line in lines:
        mean = float(np.mean(list(line["loss"].values())))
        found.setdefault(line["run"], {})[line["seed"]] = {**line["loss"], "mean": mean}
    return found


def table(study: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: loss by domain, tokens, and the paired difference of the mean loss to the first way."""
    found = losses(lines)
    names = [name for name in study["runs"] if name in found]
    sets = list(next(iter(found[names[0]].values())))
    head = ["run", "seeds", "tokens", *sets, f"mean minus {names[0]}"]
    rows = []
    for name in names:
        runs = found[name]
        tokens = np.mean([line["tokens"] for line in lines if line["run"] == name])
        cells = [common.cell([run[key] for run in runs.values()]) for key in sets]
        shared = sorted(set(runs) & set(found[names[0]]))
        paired = [runs[seed]["mean"] - found[names[0]][seed]["mean"] for seed in shared]
        difference = common.cell(paired, 4) if name != names[0] else ""
        rows.append([name, str(len(runs)), f"{tokens:,.0f}", *cells, difference])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def show(study: dict[str, Any], out: Path) -> None:
    """Print the table; write table.md and figure.svg."""
    lines = [line for line in finished(out) if line["run"] in study["runs"]]
    if not lines:
        raise InputError(f"{out / RUNS}: no finished run yet; leave --table out")
    text = table(study, lines)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(study, lines, out / "figure.svg")
    print(text)


def plot(study: dict[str, Any], lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Weights over time (a thin line per seed), and the held-out losses relative to the first way."""
    from matplotlib.figure import Figure

    found = losses(lines)
    names = [name for name in study["runs"] if name in found]
    steps = {line["run"]: max(map(len, line["weights"].values())) for line in lines}
    moving = [name for name in names if steps[name] > 2]
    figure = Figure(figsize=(4.2 * (len(moving) + 1), 3.6), layout="constrained")
    axes = figure.subplots(1, len(moving) + 1, squeeze=False)[0]
    sets = [key for key in next(iter(found[names[0]].values())) if key != "mean"]
    for panel, name in zip(axes, moving, strict=False):
        for line in (line for line in lines if line["run"] == name):
            for i, key in enumerate(sets):
                steps, values = zip(*line["weights"][key], strict=True)
                label = key if line["seed"] == study["seeds"][0] else None
                panel.step(steps, values, where="post", color=f"C{i}", alpha=0.7, label=label)
        panel.set(title=name, xlabel="optimizer step", ylabel="weight")
        panel.legend(fontsize=7)
    last = axes[-1]
    for i, name in enumerate(names[1:]):
        for j, key in enumerate([*sets, "mean"]):
            shared = sorted(set(found[name]) & set(found[names[0]]))
            if not shared:
                continue
            mean, half = common.interval([found[name][s][key] - found[names[0]][s][key] for s in shared])
            at = j + 0.8 * (i + 0.5) / max(1, len(names) - 1) - 0.4
            error = None if math.isnan(half) else half
            last.errorbar(at, mean, yerr=error, fmt="o", ms=3, color=f"C{i}", label=name if j == 0 else None)
    last.axhline(0, color="0.6", linewidth=0.8)
    last.set_xticks(range(len(sets) + 1), [*sets, "mean"], rotation=35, ha="right")
    last.set(title=f"held-out loss minus {names[0]}", ylabel="nats per target token")
    last.legend(fontsize=7)
    figure.savefig(path)


if __name__ == "__main__":
    main()
