"""Pre-training over two nodes, broken off again and again in every way that a cluster knows: it ends as if nothing had happened.

Three times in the ordinary test run; MOESAIC_KILLS=10 for the long one (about a minute each on two cores).
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import project
import psutil
import pytest
from cluster import Cluster
from test_workflow import command

from moesaic.flow import files, manifest, metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

KILLS = int(os.environ.get("MOESAIC_KILLS", "3"))
OUT = Path("results/activation/pretrain")
TWO_BY_TWO = ["nodes=2", "ranks_per_node=2", "tasks_per_node=2", "mpi=srun", "tasks_per_gpu=0", "gres=gpu:2"]


def steps(folder):
    path = folder / OUT / "work" / metrics.NAME
    return max((item["step"] for item in metrics.read(path)), default=0) if path.exists() else 0


def ranks(folder):
    """Running rank processes of this project."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "moesaic.flow.rank" in (process.info["cmdline"] or []) and process.cwd() == str(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended while we looked
            continue
    return found


def job(cluster, folder):
    lines = cluster.run(["squeue", "-h", "-t", "running", "-o", "%i %Z"]).stdout.split()
    return dict(zip(lines[1::2], lines[::2], strict=True))[str(folder)]


def kill_a_rank(cluster, folder):
    random.choice(ranks(folder)).send_signal(signal.SIGKILL)


def requeue(cluster, folder):
    cluster.run(["scontrol", "requeue", job(cluster, folder)], check=True)


def ask_to_stop(cluster, folder):
    cluster.run(["scancel", "--signal=USR2", job(cluster, folder)], check=True)


def reach_the_time_limit(cluster, folder):
    cluster.run(["scontrol", "update", f"JobId={job(cluster, folder)}", "TimeLimit=1"], check=True)


def restart_slurmd(cluster, folder):
    """The job survives this one."""
    cluster.restart_slurmd("node2")


WAYS = [kill_a_rank, ask_to_stop, restart_slurmd, requeue, kill_a_rank, reach_the_time_limit]


def test_broken_off_again_and_again_ends_as_if_never(cluster: Cluster, tmp_path: Path) -> None:
    total = 12 * (KILLS + 1)
    own = {"steps": total, "batch": 8, "micro_batch": 2, "save_every": 3, "log_samples": True}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    path = project.make(whole, {"pretrain": own})
    project.prepare(path)
    shutil.copytree(whole, broken)
    straight = project.pretrain_command(4, "--ranks-per-node", "4")
    subprocess.run(straight, cwd=whole, check=True, capture_output=True)

    target = str(OUT / "manifest.json")
    resources = [*TWO_BY_TWO, 'slurm_extra="--signal=USR2@20"']
    call = [*command(broken, broken / "config.yaml", resources), "--retries", str(3 * KILLS), "--", target]
    with (tmp_path / "out").open("w") as out:
        process = cluster.popen(call, cwd=Path(__file__).parents[2], stdout=out, stderr=out)
        for number in range(KILLS):
            moment = steps(broken) + random.randint(2, 8)
            deadline = time.monotonic() + 240
            while steps(broken) < moment:
                assert process.poll() is None, (tmp_path / "out").read_text()[-5000:]
                assert time.monotonic() < deadline, (tmp_path / "out").read_text()[-5000:] + cluster.logs()
                time.sleep(0.1)
            WAYS[number % len(WAYS)](cluster, broken)
        process.wait(600)
    assert process.returncode == 0, (tmp_path / "out").read_text()[-6000:]

    for name in ("model/model.safetensors", "manifest.json"):
        assert files.sha256(whole / OUT / name) == files.sha256(broken / OUT / name), name
    drawn = [
        [json.loads(line) for line in (folder / OUT / "work" / metrics.SAMPLES).read_text().splitlines()]
        for folder in (whole, broken)
    ]
    assert drawn[0] == drawn[1]
    assert [line["step"] for line in drawn[1]] == list(range(1, total + 1)), (
        "a step is missing or there twice"
    )
    rows: dict[str, list[int]] = {}
    for domain, row in itertools.chain.from_iterable(line["samples"] for line in drawn[1]):
        rows.setdefault(domain, []).append(row)
    counts = manifest.read(broken / "results/prepare/tokens").metrics["domains"]
    for domain, seen in rows.items():
        size = counts[domain]["train_blocks"]
        for start in range(0, len(seen), size):
            epoch = seen[start : start + size]
            assert len(set(epoch)) == len(epoch), f"{domain}: a row twice in one epoch"
