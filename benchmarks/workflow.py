"""What the workflow itself costs: a finished DAG of 200 steps that has nothing to do beside Snakemake on an empty file, and `moesaic --help` beside `import torch`.

    python benchmarks/workflow.py

A throw-away project with 25 variants of the default configuration; every output is an empty file that `snakemake --touch` records as made with these settings.
Timed is `snakemake -n` with the project's profile: it checks dates, inputs, settings and code of every step. Commands alternate; a ratio is taken
within each repetition, of processor time (also of child processes), which other work on the machine changes little; wall clock is told beside it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
VARIANTS = 25


def snakemake(folder: Path, *arguments: str) -> list[str]:
    """The command as a user would have it in the project."""
    call = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "2"]  # fmt: skip
    return [*call, "--profile", str(ROOT / "profiles/local"), "--configfile", str(folder / "config.yaml"), *arguments]  # fmt: skip


def run(call: list[str], folder: Path) -> str:
    """Run in the folder; what it printed."""
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)}: {done.stderr[-3000:]}")
    return done.stdout + done.stderr


def project(folder: Path) -> int:
    """A project whose every step is finished; the number of its steps."""
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    settings["variants"] = {f"v{i:02}": {"pretrain": {"balance": 0.01 + i / 1000}} for i in range(VARIANTS)}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    lines = run(snakemake(folder, "--summary"), folder).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("output_file"))
    listed = [line.split("\t")[0] for line in lines[head + 1 :] if "\t" in line]
    for name in listed:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # not checked: the closing hooks find nothing to read in empty files, after all steps were recorded
    subprocess.run(snakemake(folder, "--touch"), cwd=folder, capture_output=True)
    said = run(snakemake(folder, "-n"), folder)
    if "Nothing to be done" not in said:
        raise SystemExit(f"the touched project is not finished: {said[-3000:]}")
    return sum(Path(name).name == "manifest.json" for name in listed)


def seconds(call: list[str], folder: Path) -> tuple[float, float]:
    """Wall clock and processor seconds of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run(call, folder)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(own: list[str], peer: list[str], folder: Path, repetitions: int) -> dict[str, list[float]]:
    """Ratios own / peer: median, lowest, highest."""
    found: dict[str, list[float]] = {"wall": [], "processor": []}
    for turn in range(repetitions + 1):
        pair = [seconds(call, folder) for call in ((own, peer) if turn % 2 else (peer, own))]
        mine, other = pair if turn % 2 else pair[::-1]
        if turn:  # the first one fills the page cache
            found["wall"].append(mine[0] / other[0])
            found["processor"].append(mine[1] / other[1])
    return {name: [statistics.median(ratios), min(ratios), max(ratios)] for name, ratios in found.items()}


def main() -> None:
    """Measure both claims, write JSON, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/workflow.json"))
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    made: dict[str, Any] = {"repetitions": arguments.repetitions}
    with tempfile.TemporaryDirectory() as name:
        folder, empty = Path(name) / "project", Path(name) / "empty"
        folder.mkdir()
        empty.mkdir()
        (empty / "Snakefile").write_text("rule all:\n    input: []\n")
        made["steps"] = project(folder)
        nothing = [sys.executable, "-m", "snakemake", "-n", "--snakefile", str(empty / "Snakefile"), "--directory", str(empty), "--cores", "2"]  # fmt: skip
        made["no_op"] = compare(snakemake(folder, "-n"), nothing, folder, arguments.repetitions)
        print(json.dumps(made), flush=True)
        helps, torch = (
            [sys.executable, "-m", "moesaic.cli", "--help"],
            [sys.executable, "-c", "import torch"],
        )
        made["help"] = compare(helps, torch, folder, arguments.repetitions)
    print(json.dumps(made))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
