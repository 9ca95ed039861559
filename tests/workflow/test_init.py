"""`moesaic init`: a project that runs, with a profile fitted to the cluster that sinfo describes; nothing is overwritten."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moesaic import config
from moesaic.cli import main
from moesaic.errors import InputError
from moesaic.project import cluster, init, workflow

SINFO = """\
cpu*|7-00:00:00|64|256000|(null)|10
gpu|1-00:00:00|128+|512000+|gpu:a100:4(S:0-1),lustre:1|6
gpu|1-00:00:00|96|384000|gpu:h100:8|2
tiny|30:00|4|8000|(null)|1
"""
STOCK = (workflow.folder() / "profiles" / "slurm" / "config.yaml").read_text()


def test_sinfo_is_read():
    found = {item.name: item for item in cluster.parse(SINFO)}
    assert found["cpu"] == cluster.Partition("cpu", True, 7 * 1440, 64, 256000, 0, 10)
    assert found["gpu"] == cluster.Partition("gpu", False, 1440, 96, 384000, 8, 8), (
        "unlike nodes: the smallest"
    )
    assert found["tiny"].minutes == 30
    assert cluster.minutes("infinite") is None
    assert cluster.minutes("12:30:00") == 750
    assert cluster.minutes("n/a") is None
    assert cluster.gpus("gpu:2,gpu:t4:1") == 3
    assert cluster.gpus("gpu:2080ti:4(S:0-1),lustre:1") == 4
    assert cluster.gpus("gpu:1g.10gb:7,gpu:a100:1") == 8
    assert cluster.gpus("(null)") == cluster.gpus("gpufree:7") == 0
    with pytest.raises(InputError, match="cannot be read"):
        cluster.parse("slurm is down")


def test_a_partition_is_chosen():
    parts = cluster.parse(SINFO)
    assert cluster.choose(parts, None).name == "gpu"
    assert cluster.choose([item for item in parts if not item.gpus], None).name == "cpu"
    assert cluster.choose(parts, "tiny").name == "tiny"
    with pytest.raises(InputError, match="cpu, gpu, tiny"):
        cluster.choose(parts, "none")
    with pytest.raises(InputError, match="no partition"):
        cluster.choose([], None)


def test_the_profile_fits_the_partition():
    parts = {item.name: item for item in cluster.parse(SINFO)}
    stock = yaml.safe_load(STOCK)
    big = yaml.safe_load(cluster.fit(STOCK, parts["gpu"]))
    assert big["default-resources"] == {"slurm_partition": "gpu", **stock["default-resources"]}
    assert big["set-threads"] == stock["set-threads"]
    assert big["set-resources"] == stock["set-resources"]
    small = yaml.safe_load(cluster.fit(STOCK, parts["tiny"]))
    assert small["default-resources"]["mem_mb"] == 7600
    assert small["default-resources"]["runtime"] == 30
    assert set(small["set-threads"].values()) == {4}
    for rule in small["set-resources"].values():
        assert "gres" not in rule
        assert "tasks_per_gpu" not in rule
        assert rule.get("mem_mb", 0) <= 7600
        assert rule.get("runtime", 0) <= 30
    assert small["set-resources"]["pretrain"]["slurm_extra"] == "--signal=USR2@180"
    assert {key: small[key] for key in ("executor", "retries", "jobs")} == {
        key: stock[key] for key in ("executor", "retries", "jobs")
    }


@pytest.mark.parametrize(
    "stage", ["pretrain", "tune", "preference", "preference_round", "distill", "distill_round", "teacher"]
)
def test_several_gpus_as_the_profile_says(stage):
    """The block of its last comment in place of a stage's line: this stage has it, the others are as they were."""
    comment = STOCK.split("# Four GPUs of one node")[1].splitlines()[1:]
    block = [line.removeprefix("# ") for line in comment]
    lines = block[: next(i for i, line in enumerate(block) if line.startswith("Two nodes"))]
    assert lines[0] == "  pretrain:"
    new = "\n".join([f"  {stage}:", *lines[1:]])
    text, count = re.subn(rf"^  {stage}: {{.*$", lambda _: new, STOCK, flags=re.MULTILINE)
    assert count == 1
    before, after = (yaml.safe_load(item)["set-resources"] for item in (STOCK, text))
    assert after.pop(stage) == {
        "ranks_per_node": 4, "tasks_per_node": 4, "mpi": "srun", "tasks_per_gpu": 0, "gres": "gpu:4", "runtime": 1440, "mem_mb": 256000,
        "slurm_extra": "--signal=USR2@180",
    }  # fmt: skip
    before.pop(stage)
    assert after == before


def test_a_project_is_laid_out_and_plans_the_default(tmp_path, capsys):
    folder = tmp_path / "mine"
    main(["init", str(folder), "--no-cluster"])
    assert capsys.readouterr().out.splitlines()[-1] == "snakemake --profile profiles/local --cores all"
    assert config.load(folder / "config" / "config.yaml") == config.load(
        workflow.folder() / "config/config.yaml"
    )
    assert (folder / "slurm" / "config.yaml").exists()
    call = [
        str(Path(sys.executable).parent / "snakemake"),
        "-n",
        "--profile",
        "profiles/local",
        "--cores",
        "1",
    ]
    found = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "evaluate_dense" in found.stdout + found.stderr
    with pytest.raises(InputError, match="exists already"):
        init.make(folder, None, None, look=False)


def test_a_recipe_is_laid_out(tmp_path):
    init.make(tmp_path / "time", "timo", None, look=False)
    assert config.load(tmp_path / "time" / "config" / "config.yaml").name == "timo"
    with pytest.raises(InputError, match=r"recipes: .*timo"):
        init.make(tmp_path / "other", "tim", None, look=False)
    assert not (tmp_path / "other").exists()


def test_the_wheel_brings_the_workflow_along(tmp_path):
    root = workflow.folder()
    if not (root / "setup.py").exists():
        pytest.skip("an installed package, no checkout to build from")
    call = [
        sys.executable,
        "setup.py",
        "-q",
        "build_py",
        "--build-lib",
        str(tmp_path / "lib"),
        "egg_info",
        "--egg-base",
        str(tmp_path),
    ]
    found = subprocess.run(call, cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    made = tmp_path / "lib" / "moesaic" / "workflow"
    names = {str(path.relative_to(root)) for path in (root / "rules").iterdir()}
    names |= {
        "Snakefile",
        "config/config.yaml",
        "config/schema.json",
        "profiles/slurm/config.yaml",
        "envs/cpu.txt",
    }
    assert names <= {str(path.relative_to(made)) for path in made.rglob("*")}
    # What runs from there finds the workflow beside itself.
    code = "from moesaic.project import workflow; print(workflow.snakefile())"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == str(made / "Snakefile")
