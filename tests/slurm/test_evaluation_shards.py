"""An evaluation in shards on a real Slurm: every shard is a job of its own, and the scores are those of one job, to the byte."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import project
import pytest
import yaml
from cluster import Cluster

from moesaic.flow import manifest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SHARDS = 2
TARGET = "results/dense/evaluate/manifest.json"
CHANGES = {
    "data": {
        "chat": {"sources": []},
        "reliability": {"sets": ["sentences", "lookalikes"], "folder": "sets", "items": 3, "texts": 2, "answer_tokens": 3},
    },
    "evaluate": {"suites": ["reliability"], "blocks": 2, "shards": SHARDS},
    "stages": ["construct"],
}  # fmt: skip


def evaluated(cluster: Cluster, folder: Path) -> Path:
    """`snakemake --profile slurm` up to the parent's evaluation; returns its folder."""
    call = [str(Path(sys.executable).parent / "snakemake"), "--profile", "slurm", "--directory", str(folder)]
    call += ["--configfile", str(folder / "config.yaml"), "--latency-wait=5"]
    call += ["--slurm-init-seconds-before-status-checks=2", "--default-resources", "mem_mb=1000", "runtime=5"]
    # The sums of a matrix product depend on the number of threads.
    call += ["--set-threads", "evaluate_dense=1", "evaluate_part=1", "--", TARGET]
    process = cluster.popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-6000:]
    return (folder / TARGET).parent


def job(folder: Path) -> str:
    """The Slurm job that a step ran in."""
    found: str = json.loads((folder / "run.json").read_text())["slurm_job_id"]
    return found


def test_shards_are_jobs_and_change_no_score(cluster: Cluster, tmp_path: Path) -> None:
    several, one = tmp_path / "several", tmp_path / "one"
    several.mkdir()
    path = project.make(several, CHANGES)
    (several / "sets").mkdir()
    rows = "".join(f"this film number {i} was fine for you,{i % 2}\n" for i in range(6))
    (several / "sets/sentences.csv").write_text("sentence,label\n" + rows)
    made = evaluated(cluster, several)
    parts = [several / f"results/dense/evaluate_part/dense/{shard}" for shard in range(SHARDS)]
    jobs = [job(folder) for folder in (*parts, made)]
    assert all(jobs)
    assert len(set(jobs)) == SHARDS + 1
    # lookalikes, and the sentences in six forms
    assert [manifest.read(folder).metrics["tasks"] for folder in parts] == [4, 3]

    # The same preparation and parent, evaluated by one job.
    shutil.copytree(several, one, ignore=shutil.ignore_patterns("evaluate", "evaluate_part", ".snakemake"))
    settings = yaml.safe_load(path.read_text())
    settings["evaluate"]["shards"] = 1
    (one / "config.yaml").write_text(yaml.safe_dump(settings))
    alone = evaluated(cluster, one)
    assert job(alone) not in jobs
    assert not (one / "results/dense/evaluate_part").exists()
    for name in ("scores.json", "items.parquet", "reliability.json"):
        assert (alone / name).read_bytes() == (made / name).read_bytes(), name
