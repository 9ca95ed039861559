"""The shipped slurm profile on a real Slurm: two nodes, time limit, requeue, and a killed Snakemake."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quick
from cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"
TWO_NODES = ["nodes=2", "ranks_per_node=2", "tasks_per_node=2", "mpi=srun", "tasks_per_gpu=0", "gres=gpu:2"]


class Project:
    """A working folder with the toy workflow, and ways to run Snakemake in it on the cluster."""

    def __init__(self, cluster: Cluster, folder: Path, **settings: Any):
        self.cluster, self.folder = cluster, folder
        self.work = folder / "results" / "train" / "work"
        train = {"steps": 100, "pause": 0.1, "save": 10} | settings
        plan = {
            "toy_data": {"settings": {"seed": 1}, "out": "results/data"},
            "toy_train": {
                "settings": train,
                "inputs": {"data": "results/data/manifest.json"},
                "out": "results/train",
            },
        }
        (folder / "toy.json").write_text(json.dumps(plan))

    def make_data(self) -> None:
        """Run the first step here, so that a test's cluster jobs are all about training."""
        command = [sys.executable, str(TOY / "slurm_toy.py"), "toy_data", "--config", "toy.json"]
        environment = os.environ | {"PYTHONPATH": str(TOY)}
        subprocess.run(command, cwd=self.folder, env=environment, check=True, capture_output=True)

    def snakemake(self, *resources: str, extra: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        """Start `snakemake --profile` with our profile, other resources of the rule and more options."""
        command = [*quick.COMMAND, "--snakefile", str(TOY / "Snakefile")]
        command += ["--profile", str(ROOT / "profiles" / "slurm"), "--latency-wait=5"]
        command.append("--slurm-init-seconds-before-status-checks=2")
        if resources:  # they take the place of the profile's own
            command += ["--default-resources", "mem_mb=500", "runtime=5", "--set-threads", "pretrain=1"]
            command += ["--set-resources", *(f"pretrain:{item}" for item in resources)]
        command += extra
        with (self.folder / "snakemake.out").open("a") as output:
            return self.cluster.popen(command, cwd=self.folder, stdout=output, stderr=output)

    def wait_for(self, what: Callable[[], Any], why: str, timeout: float = 90.0) -> Any:
        """Poll until it is true."""
        deadline = time.monotonic() + timeout
        while not (found := what()):
            assert time.monotonic() < deadline, f"no {why} in {timeout:.0f} s\n{self.story()}"
            time.sleep(0.2)
        return found

    def finish(self, process: "subprocess.Popen[str]", code: int = 0, timeout: float = 240.0) -> None:
        """Wait for Snakemake's end."""
        try:
            found = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"Snakemake did not end in {timeout:.0f} s\n{self.story()}")
        assert found == code, self.story()

    def steps(self) -> list[int]:
        """The training steps that were logged so far."""
        path = self.work / "metrics.jsonl"
        lines = path.read_text().splitlines()[:-1] if path.exists() else []
        return [json.loads(line)["step"] for line in lines]

    def jobs(self) -> list[str]:
        """Ids of this project's jobs."""
        lines = self.cluster.run(["squeue", "-h", "-o", "%i %Z"]).stdout.splitlines()
        return [line.split()[0] for line in lines if line.split()[1] == str(self.folder)]

    def job_logs(self) -> str:
        """What the jobs printed."""
        paths = sorted(self.folder.glob(".snakemake/slurm_logs/rule_pretrain/*.log"))
        return "\n".join(path.read_text() for path in paths)

    def story(self) -> str:
        """All that helps to see why a test failed."""
        parts = [(self.folder / "snakemake.out").read_text(), self.job_logs(), self.cluster.logs()]
        return "\n=====\n".join(parts)

    def weights(self) -> Any:
        """The trained weights."""
        return json.loads((self.folder / "results" / "train" / "weights.json").read_text())

    def check_whole(self, attempts: int) -> None:
        """Every step was done once, in order, over at least so many attempts, and the step was finished."""
        metrics = [json.loads(line) for line in (self.work / "metrics.jsonl").read_text().splitlines()]
        train = json.loads((self.folder / "toy.json").read_text())["toy_train"]["settings"]
        assert [line["step"] for line in metrics] == list(range(1, train["steps"] + 1))
        run = json.loads((self.folder / "results" / "train" / "run.json").read_text())
        assert run["attempts"] >= attempts
        assert (self.folder / "results" / "train" / "manifest.json").exists()


def _straight(tmp_path: Path, project: Project, ranks: int) -> Any:
    """Weights of the same training without any interruption, on this machine."""
    folder = tmp_path / "straight"
    folder.mkdir()
    shutil.copytree(project.folder / "results" / "data", folder / "results" / "data")
    plan = json.loads((project.folder / "toy.json").read_text())
    plan["toy_train"]["settings"] |= {"pause": 0.0, "slow_save": 0.0}
    (folder / "toy.json").write_text(json.dumps(plan))
    command = [sys.executable, str(TOY / "slurm_toy.py"), "toy_train", "--config", "toy.json"]
    command += ["--ranks-per-node", str(ranks), "--threads", str(ranks)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    subprocess.run(
        command, cwd=folder, env=environment | {"PYTHONPATH": str(TOY)}, check=True, capture_output=True
    )
    return json.loads((folder / "results" / "train" / "weights.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def limited(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, "subprocess.Popen[str]"]:
    """A run with the shortest time limit that Slurm has, one minute; started first, since it takes the longest."""
    folder = tmp_path_factory.mktemp("limited")
    # One task: Slurm's signal hits the Snakemake inside the job, too. Were it to die, the slow save would be lost.
    project = Project(cluster, folder, steps=300, pause=0.2, save=100_000, slow_save=3.0)
    project.make_data()
    resources = ("runtime=1", 'slurm_extra="--signal=USR2@15"', "gres=gpu:1", "tasks_per_gpu=0")
    # Slurm may signal a minute early: on a busy machine an attempt gets only a few steps done, and the profile's retries would not do.
    return project, project.snakemake(*resources, extra=("--retries=10",))


def test_two_nodes_signalled_once_finish_as_if_never_stopped(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path, steps=60)
    process = project.snakemake(*TWO_NODES, 'slurm_extra="--signal=USR2@20"')
    project.wait_for(lambda: len(project.steps()) >= 15, "training")
    (job,) = project.jobs()
    # What Slurm does before the time limit: signal all steps, but not the batch script.
    cluster.run(["scancel", "--signal=USR2", job], check=True)
    project.finish(process)

    project.check_whole(attempts=2)
    assert "train: stopped after step" in project.job_logs()
    assert project.weights() == _straight(tmp_path, project, 4)
    ranks = [json.loads((project.work / f"rank-{rank}.json").read_text()) for rank in range(4)]
    assert [item["SLURMD_NODENAME"] for item in ranks] == ["node1", "node1", "node2", "node2"]
    assert [item["LOCAL_RANK"] for item in ranks] == ["0", "1", "0", "1"]
    assert {item["world"] for item in ranks} == {4}
    assert {item["master"] for item in ranks} == {"node1"}
    # Each rank sees all GPUs of its node's allocation and picks its own by local rank.
    assert [len(item["CUDA_VISIBLE_DEVICES"].split(",")) for item in ranks] == [2, 2, 2, 2]
    assert ranks[0]["CUDA_VISIBLE_DEVICES"] == ranks[1]["CUDA_VISIBLE_DEVICES"]
    assert not list(project.work.glob("launch-*"))


def test_requeued_job_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path, steps=100)
    project.make_data()
    process = project.snakemake("ranks_per_node=2", "cpus_per_task=2", extra=("--retries=0",))
    project.wait_for(lambda: len(project.steps()) >= 15, "training")
    (job,) = project.jobs()
    cluster.run(["scontrol", "requeue", job], check=True)
    # Without retries only a job that Slurm itself starts again can finish.
    project.finish(process)
    project.check_whole(attempts=2)
    assert project.weights() == _straight(tmp_path, project, 2)
    where = json.loads((project.work / "rank-1.json").read_text())
    assert (where["world"], where["job"]) == (2, job)


def test_killed_snakemake_leaves_the_job_and_a_second_writer_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Long enough for three more starts of Snakemake on a busy machine.
    project = Project(cluster, tmp_path, steps=700)
    project.make_data()
    process = project.snakemake()
    project.wait_for(lambda: len(project.steps()) >= 5, "training")
    process.kill()
    process.wait()
    (first,) = project.jobs()
    # Here the profile is used as it is shipped.
    asked = cluster.run(["squeue", "-h", "-j", first, "-o", "%b %l %C %m %D"]).stdout.split()
    assert asked == ["gres:gpu:1", "1-00:00:00", "8", "62.50G", "1"]

    project.finish(project.snakemake(), code=1, timeout=90)
    assert "--unlock" in (project.folder / "snakemake.out").read_text()
    project.finish(project.snakemake(extra=("--unlock",)), timeout=90)
    assert project.jobs() == [first], "the job of the killed Snakemake should still run"
    project.finish(project.snakemake(extra=("--retries=0",)), code=1, timeout=120)
    assert f"another process is writing here (host {os.uname().nodename}" in project.job_logs()
    assert f"Slurm job {first}" in project.job_logs()

    project.wait_for(lambda: not project.jobs(), "end of the first job", timeout=180.0)
    project.finish(project.snakemake())
    project.check_whole(attempts=1)
    assert project.weights() == _straight(tmp_path, project, 1)


def test_time_limit_saves_and_resumes(
    limited: tuple[Project, "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    project, process = limited
    project.finish(process, timeout=600.0)
    project.check_whole(attempts=2)
    assert "train: stopped after step" in project.job_logs()
    assert project.weights() == _straight(tmp_path, project, 1)
