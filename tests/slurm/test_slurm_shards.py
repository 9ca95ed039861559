"""An evaluation in shards on a real Slurm: every shard is a job of its own, and the scores are those of one job, to the byte."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import project
import pytest
import quick
import yaml
from cluster import Cluster

from moesaic.flow import manifest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SHARDS = 2
PROGRAMS = Path(sys.executable).parent
CHANGES = {
    "data": {
        "chat": {"sources": []},
        "reliability": {"sets": ["sentences", "lookalikes"], "folder": "sets", "items": 3, "texts": 2, "answer_tokens": 3},
    },
    "evaluate": {"suites": ["reliability"], "blocks": 2, "shards": SHARDS},
    "stages": ["construct"],
}  # fmt: skip


def job(folder: Path) -> str:
    """The Slurm job that a step ran in; empty: none."""
    return str(json.loads((folder / "run.json").read_text()).get("slurm_job_id") or "")


def test_shards_are_jobs_and_change_no_score(cluster: Cluster, tmp_path: Path) -> None:
    several, one = tmp_path / "several", tmp_path / "one"
    several.mkdir()
    path = project.make(several, CHANGES)
    (several / "sets").mkdir()
    rows = "".join(f"this film number {i} was fine for you,{i % 2}\n" for i in range(6))
    (several / "sets/sentences.csv").write_text("sentence,label\n" + rows)
    with contextlib.chdir(several):
        for step in ("dense", "documents", "tokens", "tasks", "reliability"):
            project.run(path, step)
    shutil.copytree(several, one)

    call = [*quick.COMMAND, "--profile", "slurm", "--directory", str(several)]
    call += ["--configfile", str(path), "--latency-wait=5", "--slurm-init-seconds-before-status-checks=2"]
    call += ["--default-resources", "mem_mb=1000", "runtime=10"]
    # The sums of a matrix product depend on the number of threads.
    call += ["--set-threads", "evaluate_dense=1", "evaluate_part=1"]
    call += ["--", "results/dense/evaluate/manifest.json"]
    process = cluster.popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-6000:]
    made = several / "results/dense/evaluate"
    parts = [several / f"results/dense/evaluate_part/dense/{shard}" for shard in range(SHARDS)]
    jobs = [job(folder) for folder in (*parts, made)]
    assert all(jobs)
    assert len(set(jobs)) == SHARDS + 1
    # lookalikes, and the sentences in six forms
    assert [manifest.read(folder).metrics["tasks"] for folder in parts] == [4, 3]

    settings = yaml.safe_load(path.read_text())
    settings["evaluate"]["shards"] = 1
    (one / "config.yaml").write_text(yaml.safe_dump(settings))
    call = [
        str(PROGRAMS / "moesaic"),
        "evaluate",
        "--config",
        "config.yaml",
        "--stage",
        "dense",
        "--threads",
        "1",
    ]
    done = subprocess.run(call, cwd=one, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = one / "results/dense/evaluate"
    assert not (one / "results/dense/evaluate_part").exists()
    for name in ("scores.json", "items.parquet", "reliability.json"):
        assert (alone / name).read_bytes() == (made / name).read_bytes(), name
