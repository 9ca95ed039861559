"""The real Snakefile with the real profile on a real Slurm: `snakemake --profile slurm`, pre-training over two nodes."""

import json
import subprocess
import sys
from pathlib import Path

import project
import pytest
import quick
import yaml
from cluster import Cluster

from moesaic.flow import manifest, metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
STEPS = 6


def command(folder: Path, config: Path, resources: list[str]) -> list[str]:
    """`snakemake --profile slurm` for a project in `folder`, with these resources of the pretrain rule."""
    call = [*quick.COMMAND, "--profile", "slurm", "--directory", str(folder)]
    call += ["--configfile", str(config), "--latency-wait=5", "--slurm-init-seconds-before-status-checks=2"]
    call += ["--default-resources", "mem_mb=1000", "runtime=5"]
    call += ["--set-threads", "pretrain=1", "construct=1", "evaluate=1"]
    return [*call, "--set-resources", *(f"pretrain:{item}" for item in resources)]


def test_the_same_dag_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    path = project.make(tmp_path, {"pretrain": {"steps": STEPS, "batch": 8, "micro_batch": 2}})
    resources = [
        "nodes=2",
        "ranks_per_node=2",
        "tasks_per_node=2",
        "mpi=srun",
        "tasks_per_gpu=0",
        "gres=gpu:2",
    ]
    call = [*command(tmp_path, path, resources), "--", "results/activation/evaluate/pretrain/manifest.json"]
    # From the repository's root, as a user types it: `slurm` there is a link to profiles/slurm.
    process = cluster.popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-6000:]
    folder = tmp_path / "results/activation/pretrain"
    run = json.loads((folder / "run.json").read_text())
    assert run["measured"]["ranks"] == 4
    assert run["slurm_job_id"]
    made = manifest.read(folder)
    manifest.verify(made)
    assert made.metrics["tokens"] == STEPS * 8 * 64
    lines = [item for item in metrics.read(folder / "work/metrics.jsonl") if item["key"] == "train/loss"]
    assert [item["step"] for item in lines] == list(range(1, STEPS + 1)), "only rank 0 writes metrics"
    assert (tmp_path / "mlflow.db").exists()


def test_a_new_project_runs_on_the_cluster_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    """`moesaic init`, then the command that it prints; nothing of the profile is overridden."""
    programs = Path(sys.executable).parent
    made = cluster.run([str(programs / "moesaic"), "init", str(tmp_path / "new")])
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "new"
    profile = yaml.safe_load((folder / "slurm" / "config.yaml").read_text())
    assert profile["default-resources"]["slurm_partition"] == "main"
    assert profile["set-resources"]["pretrain"]["gres"] == "gpu:1"
    # The same workflow and profile on a small model, to end in a minute.
    small = project.make(tmp_path)
    for part in tmp_path.iterdir():
        if part not in (folder, small):
            part.rename(folder / part.name)
    (folder / "config" / "config.yaml").write_text(small.read_text())
    command = made.stdout.splitlines()[-1].split()
    assert command == ["snakemake", "--profile", "slurm"]
    call = [*quick.COMMAND, *command[1:], "results/activation/evaluate/construct/manifest.json"]
    process = cluster.popen(call, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-6000:]
    step = folder / "results/activation/construct"
    manifest.verify(manifest.read(step))
    assert json.loads((step / "run.json").read_text())["slurm_job_id"]
