"""Study: what do pairs that a model makes itself add to supervised maths tuning, on questions about time? Six arms, after Timo (arXiv 2406.14192, table 2).

    python studies/timo.py            # about an hour on two cores; goes on where it stopped, within a step too
    python studies/timo.py --table    # of what is finished

Arms: the MoE as constructed, after maths SFT, then SFT on the chosen answers and DPO on random, rubric and verifier pairs. Settings: studies/timo.yaml.
All arms share the construction, the maths SFT and the sampled answers. Intervals are 95 % bootstraps over the items within their task; differences
are paired by item. An arm with fewer than 8 pairs (a critic that states no scores) is left out and named in the log. A general task falls when its difference lies below 0 with its whole interval.
"""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd

from moesaic import config
from moesaic.errors import InputError
from moesaic.evaluate import bootstrap, compare
from moesaic.evaluate.temporal.tasks import TASKS
from moesaic.flow import files, manifest, paths
from moesaic.flow.step import STEPS, execute
from moesaic.schema import Config

log = logging.getLogger("moesaic.study")
SHARED = ("construct", "tune")
"""Stages that every arm has in common; the first variant's are taken."""
KINDS = ("math-time", "pure-time")
RESAMPLES = 1000
LEAST = 8
"""Pairs that an arm needs; a critic that states no scores leaves fewer."""


def main() -> None:
    """Make what is missing, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--out", type=Path, default=Path("results/studies/timo"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    parser.add_argument("--table", action="store_true", help="make nothing")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    changes: dict[str, Any] = {}
    for text in arguments.set:
        changes = config.merge(changes, config.parse_override(text))
    try:
        wanted = config.load(arguments.study.resolve(), changes)
        arguments.out.mkdir(parents=True, exist_ok=True)
        os.chdir(arguments.out)
        if not arguments.table:
            import torch

            torch.set_num_threads(arguments.threads)
            make(wanted)
        text = table(evaluations(wanted))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    Path("table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def make(wanted: Config) -> None:
    """Every step that is not up to date, shared ones once."""
    first = next(iter(wanted.variants))
    for step in ("dense", *paths.prepared(wanted)):
        once(step, paths.plan_step(wanted, step))
    once("evaluate", paths.plan_step(wanted, "evaluate", stage="dense"))
    for step in SHARED:
        once(step, paths.plan_step(wanted, step, first))
        once("evaluate", paths.plan_step(wanted, "evaluate", first, step))
    for name in wanted.variants:
        for step, part in paths.round_steps(wanted, name):
            once(step, shared(paths.plan_step(wanted, step, name, part=part), first, name))
        if pairs(wanted, name) < LEAST:
            log.warning("%s: fewer than %d pairs, the arm is left out", name, LEAST)
            continue
        once("preference", shared(paths.plan_step(wanted, "preference", name), first, name))
        once("evaluate", paths.plan_step(wanted, "evaluate", name, "preference"))


def pairs(wanted: Config, name: str) -> int:
    """Pairs of a variant's only round, over its shards."""
    found = [
        manifest.read(paths.folder(step, name, part=part)).metrics["counts"]
        for step, part in paths.round_steps(wanted, name)
        if step == "rate"
    ]
    return sum(counts["pairs"] for shard in found for counts in shard.values())


def once(step: str, plan: paths.Plan) -> None:
    """Run a step unless its results are there and up to date."""
    if not common.current(plan):
        log.info("%s -> %s", step, plan.out)
        execute(STEPS[step], plan.settings, plan.inputs, plan.out)


def shared(plan: paths.Plan, first: str, name: str) -> paths.Plan:
    """The plan with the first variant's construction and tuning in place of the variant's own."""
    own = {paths.folder(step, name): paths.folder(step, first) for step in SHARED}
    inputs = {key: own.get(path.parent, path.parent) / path.name for key, path in plan.inputs.items()}
    return paths.Plan(plan.settings, inputs, plan.out)


def evaluations(wanted: Config) -> dict[str, Path]:
    """Arm -> folder of its evaluation, of those that are finished and up to date."""
    first = next(iter(wanted.variants))
    found = {
        "dense parent": paths.plan_step(wanted, "evaluate", stage="dense"),
        "base (constructed)": paths.plan_step(wanted, "evaluate", first, "construct"),
        "maths SFT": paths.plan_step(wanted, "evaluate", first, "tune"),
    }
    found |= {name: paths.plan_step(wanted, "evaluate", name, "preference") for name in wanted.variants}
    there = {arm: plan for arm, plan in found.items() if (plan.out / manifest.NAME).exists()}
    stale = [arm for arm, plan in there.items() if not common.current(plan)]
    if stale:
        log.warning("left out, made with other settings or inputs: %s; run the study again", ", ".join(stale))
    return {arm: plan.out for arm, plan in there.items() if arm not in stale}


def table(arms: dict[str, Path]) -> str:
    """Markdown: accuracy by kind of question beside its chance, general tasks, and paired differences to maths SFT, in percentage points."""
    if not arms:
        raise InputError("no evaluation is finished and up to date; run the study without --table")
    heads = [*KINDS, "general tasks"]
    lines = [
        "| arm | " + " | ".join(f"{head} | minus maths SFT" for head in heads) + " |",
        "|---" * (2 * len(heads) + 1) + "|",
    ]
    found = {arm: scores(folder) for arm, folder in arms.items()}
    for arm, folder in arms.items():
        cells = []
        for head in heads:
            value, low, high = (100 * found[arm][head][key] for key in ("value", "ci_low", "ci_high"))
            paired = arm != "maths SFT" and "maths SFT" in arms
            cells += [
                f"{value:.1f} [{low:.1f}, {high:.1f}]",
                difference(folder, arms["maths SFT"], head) if paired else "",
            ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    chance = " | ".join(f"{100 * found[next(iter(arms))][head]['chance']:.1f} |" for head in heads)
    return "\n".join([*lines, f"| chance | {chance}"])


def scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Accuracies of an evaluation by head of the table."""
    every = files.read_json(folder / "scores.json")
    found = {item["task"]: item for item in every if item["metric"] == "acc"}
    return {kind: found[f"temporal_{kind.replace('-', '_')}"] for kind in KINDS} | {
        "general tasks": found["mc/average"]
    }


def difference(folder: Path, other: Path, head: str) -> str:
    """Mean over the tasks of a kind, paired by item."""
    if head in KINDS:
        both = [stratum(place, head) for place in (folder, other)]
        found = bootstrap.difference(*both, RESAMPLES, bootstrap.generator(0, head))
        value, bounds = found.value, (found.low, found.high)
    else:
        value, *rest, _ = compare.paired(
            folder / "items.parquet", other / "items.parquet", "mc/average", resamples=RESAMPLES
        )
        bounds = (rest[0], rest[1])
    low, high = bounds
    if low is None or high is None:  # a single item leaves nothing to resample
        return f"{100 * value:+.1f}"
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def stratum(folder: Path, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(right or wrong, 1) [N] of every task of a kind, items in order."""
    frame = pd.read_parquet(folder / "items.parquet")
    members = [f"temporal_{name}" for name, task in TASKS.items() if task.kind == kind]
    groups = [rows.sort_values("item") for name, rows in frame.groupby("task") if name in members]
    return [(rows["acc"].to_numpy(float), np.ones(len(rows))) for rows in groups]


if __name__ == "__main__":
    main()
