"""Study: which construction is how good, before and after the same little training, over seeds.

    snakemake --profile profiles/local --cores 2 results/dense/manifest.json results/prepare/tokens/manifest.json
    python studies/construction.py            # about an hour on two cores; goes on where it stopped
    python studies/construction.py --show     # table and plot of what is there

A selection of the rows of benchmarks/construct.py (which makes them): half of the FFN active, 10,240 calibration tokens, 8,192 training tokens. Shown are
all rows of that many tokens, 25 and 75 % active too.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import common

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "construct.jsonl"
METHODS = [
    "random, random router, N/k (LLaMA-MoE)",
    "static pruning, refitted (control)",
    "random",
    "activation by rate, 2 of 6, representative router (CMoE)",
    "activation by rate, 2 of 6 beside shared",
    "activation, two thirds of what runs shared",
    "activation, first layer left dense (default)",
]
OPTIONS = {"tokens": 10240, "train_tokens": 8192, "rate": 1e-4}
SHARES = (0.25, 0.5, 0.75)


def main() -> None:
    """Make the missing rows, print the table, draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="make nothing")
    arguments = parser.parse_args()
    wanted = [
        {"method": name, "seed": seed, "active": 0.5, **OPTIONS}
        for seed in range(arguments.seeds)
        for name in METHODS
    ]
    if not arguments.show and common.missing(OUT, wanted):
        call = [
            sys.executable,
            str(ROOT / "benchmarks" / "construct.py"),
            "--seeds",
            str(arguments.seeds),
            "--active",
            "0.5",
        ]
        subprocess.run(
            [*call, "--tokens", str(OPTIONS["tokens"]), "--methods", "dense parent", *METHODS],
            check=True,
            cwd=ROOT,
        )
    for active in SHARES:
        show(active)


def show(active: float) -> None:
    """Table and plot of a share of the FFN, the nearest to the parent first."""
    found = [
        item
        for item in common.rows(OUT)
        if OPTIONS.items() <= item.items() and item["active"] in (active, 1.0)
    ]
    before: dict[str, list[float]] = {}
    for item in found:
        before.setdefault(item["method"], []).append(math.log(item.get("calibrated", 1.0)))
    names = sorted(before, key=lambda name: sum(before[name]) / len(before[name]))
    columns = {
        "calibrated": "before training",
        "absent": "before, held-out domain",
        "calibrated_after": "after 8k tokens",
        "absent_after": "after, held-out domain",
    }
    print(f"\n{active:.0%} active\n\n{common.table(found, names, columns, 2)}")
    drawn = {"calibrated": "before training", "calibrated_after": "after 8k tokens"}
    common.dots(
        found, names, drawn, f"perplexity / dense parent's, calibrated domains, {active:.0%} active", ROOT / "docs" / "studies" / f"construction-{100 * active:.0f}.svg",
        log=True, lines={"dense parent": 1.0},
    )  # fmt: skip


if __name__ == "__main__":
    main()
