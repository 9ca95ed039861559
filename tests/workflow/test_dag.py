"""The DAG on the tiny project: a run, a second run that does nothing, one changed key, one touched default."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import project
import pytest
import yaml

from moesaic import cli, config
from moesaic.flow import hooks, manifest, store, track

ROOT = Path(__file__).parents[2]


def snakemake(folder, *arguments, check=True, snakefile=ROOT / "Snakefile", configfile=None):
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(snakefile),
        "--directory",
        str(folder),
    ]
    command += [
        "--profile",
        str(ROOT / "profiles/local"),
        "--configfile",
        str(configfile or folder / "config.yaml"),
        "--cores",
        "2",
        *arguments,
    ]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert not check or done.returncode == 0, done.stderr[-5000:]
    return done


def planned(folder, *arguments):
    """Rule -> number of jobs of a dry run."""
    out = snakemake(folder, "--dry-run", *arguments)
    return counted(out.stdout + out.stderr)


def counted(text):
    """Rule -> number of jobs, from what a dry run says."""
    if "Nothing to be done" in text:
        return {}
    lines = text.split("Job stats:")[1].split("\n\n")[0].splitlines()
    rows = [line.split() for line in lines if line and line.split()[-1].isdigit()]
    return {name: int(count) for name, count in rows if name != "total"}


def change(folder, key, value):
    path = folder / "config.yaml"
    raw = yaml.safe_load(path.read_text())
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    path.write_text(yaml.safe_dump(raw))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dag")
    project.make(folder, {"pretrain": {"steps": 2}, "tune": {"steps": 2}, "distill": {"steps": 2}})
    done = snakemake(folder)
    return folder, done


@pytest.mark.slow
def test_a_whole_run_and_what_it_leaves(finished):
    folder, done = finished
    assert (folder / "results/report.html").stat().st_size > 10_000
    assert (folder / "results/summary.json").exists()
    assert (folder / "mlflow.db").exists()
    assert "results/report.html" in done.stderr, "the summary with the report's path is printed"
    for stage in ("construct", "pretrain", "tune", "distill"):
        assert (folder / f"results/activation/{stage}/model/config.json").exists()
        assert not (folder / f"results/activation/{stage}/work/checkpoints").exists(), (
            "checkpoints of finished runs are removed"
        )


@pytest.mark.slow
def test_right_after_a_run_there_is_nothing_to_do(finished):
    assert planned(finished[0]) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("distill.steps", 3, {"distill": 1, "evaluate": 1, "report": 1, "all": 1}),
        ("tune.balance", 0.5, {"tune": 1, "distill": 1, "evaluate": 2, "report": 1, "all": 1}),
        ("evaluate.blocks", 3, {"evaluate": 4, "evaluate_dense": 1, "report": 1, "all": 1}),
        ("track.experiment", "elsewhere", {}),
    ],
)
def test_a_changed_key_reruns_its_step_and_what_is_below(finished, key, value, expected):
    folder = finished[0]
    before = (folder / "config.yaml").read_text()
    change(folder, key, value)
    try:
        assert planned(folder) == expected
    finally:
        (folder / "config.yaml").write_text(before)


def test_how_a_stage_runs_is_no_reason_to_run_it_again(finished):
    folder = finished[0]
    path = folder / "config.yaml"
    before = path.read_text()
    try:
        change(folder, "pretrain.keep_checkpoints", 7)
        change(folder, "tune.engine.gradient_checkpointing", True)
        assert planned(folder) == {}
    finally:
        path.write_text(before)


def test_an_edited_file_counts_like_a_changed_key(finished):
    folder = finished[0]
    path = folder / "chat.json"
    before, status = path.read_text(), path.stat()
    path.write_text(before + "\n")
    try:
        jobs = planned(folder)
    finally:
        path.write_text(before)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert jobs["chat"] == 1
    assert jobs["tune"] >= 1
    assert not {"documents", "tokens", "construct", "pretrain"} & set(jobs)
    assert planned(folder) == {}


@pytest.mark.slow
def test_results_load_in_an_environment_without_moesaic(finished):
    """Plain transformers, our package hidden: a meta path hook refuses every import of moesaic."""
    code = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, *a):\n"
        "        if name.split('.')[0] == 'moesaic': raise ImportError('moesaic is hidden')\n"
        "sys.meta_path.insert(0, No())\n"
        "from transformers import AutoModelForCausalLM as A\n"
        "m = A.from_pretrained('results/activation/pretrain/model')\n"
        "print(type(m).__module__, type(m).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=finished[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("transformers.models.granitemoeshared")


def test_a_typo_stops_the_run_before_any_job(tmp_path):
    project.make(tmp_path)
    change(tmp_path, "distill.stps", 3)
    done = snakemake(tmp_path, check=False)
    assert done.returncode != 0
    assert "distill.stps: unknown key (value 3); did you mean 'steps'?" in done.stdout + done.stderr
    assert not (tmp_path / "results").exists()


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A project as the main process leaves it for its jobs: the configuration is written, the environment tells where."""
    project.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(track, "start", lambda settings, results: "")
    for name in ("CONFIG", "PARENT_RUN", "GIT_COMMIT", "TRACKING_URI", "EXPERIMENT"):
        monkeypatch.setenv(f"MOESAIC_{name}", "")
    own = config.load(tmp_path / "config.yaml", {"seed": 41})
    hooks.start(own)
    hooks.prepare(own)
    return tmp_path


JOB = (
    "--mode", "remote", "--no-hooks", "--target-jobs", "documents:", "--allowed-rules", "documents", "--force",
)  # fmt: skip


def test_a_queued_job_sees_no_later_edit(started):
    change(started, "seed", 42)
    change(started, "distill.stps", 3)
    snakemake(started, *JOB)
    assert manifest.read(started / "results/prepare/documents").settings["seed"] == 41


def test_jobs_are_sent_off_without_the_users_file(tmp_path):
    """Snakemake would parse it in each of them, and it may be half saved when a job leaves the queue."""
    project.make(tmp_path)
    (tmp_path / "Snakefile").write_text(
        f'include: "{ROOT / "Snakefile"}"\nprint("jobs read", *workflow.overwrite_configfiles)\n'
    )
    out = snakemake(tmp_path, "--dry-run", snakefile=tmp_path / "Snakefile").stdout
    (line,) = [line for line in out.splitlines() if line.startswith("jobs read")]
    own = config.load(tmp_path / "config.yaml")
    assert line == f"jobs read {tmp_path / hooks.config_file(own)}"


def test_a_job_runs_beside_a_half_saved_file(started):
    own = config.load(started / "config.yaml", {"seed": 41})
    (started / "config.yaml").write_text("pretrain: {steps: [")
    snakemake(started, *JOB, configfile=hooks.config_file(own).absolute())
    assert manifest.read(started / "results/prepare/documents").settings["seed"] == 41


def test_a_failed_job_is_told_with_its_words_and_in_mlflow(tmp_path):
    project.make(tmp_path)
    shutil.rmtree(tmp_path / "text/code")
    done = snakemake(tmp_path, "--", "results/prepare/documents/manifest.json", check=False)
    assert done.returncode == 1
    assert "text/code" in done.stderr, "the job's log is shown"
    found = store.client(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [item.experiment_id for item in found.search_experiments() if item.name != "Default"]
    (run,) = store.search(found, experiment, kind="workflow")
    assert run.info.status == "FAILED"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("evaluate.task_shots", {"no_such_task": 3}, "evaluate.task_shots"),
        ("pretrain.engine", {"kind": "deepspeed", "deepspeed": "gone.json"}, "gone.json: no such file"),
    ],
)
def test_what_a_step_cannot_be_planned_with_is_one_line(tmp_path, key, value, said):
    project.make(tmp_path)
    change(tmp_path, key, value)
    done = snakemake(tmp_path, "--dry-run", check=False)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "InputFunctionException" not in done.stdout + done.stderr


def test_the_default_configuration_plans_the_whole_chain(tmp_path):
    (tmp_path / "config.yaml").write_text((ROOT / "config/config.yaml").read_text())
    jobs = planned(tmp_path)
    assert jobs["construct"] == jobs["pretrain"] == jobs["tune"] == jobs["distill"] == 2
    assert jobs["evaluate"] == 8
    assert sum(jobs.values()) == 24


def test_a_run_without_conversations_ends_with_its_report(tmp_path):
    project.make(tmp_path, {"stages": ["construct"]})
    path = tmp_path / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["data"]["chat"]
    path.write_text(yaml.safe_dump(settings))
    assert "chat" not in planned(tmp_path)
    said = snakemake(tmp_path).stderr
    assert "bits/byte" in said, "the closing table: all steps are as configured"
    assert "WARNING" not in said
    assert "Conversations kept" not in (tmp_path / "results/report.html").read_text()
    assert planned(tmp_path) == {}


@pytest.mark.parametrize(
    "recipe",
    [*sorted((ROOT / "config/recipes").glob("*.yaml")), ROOT / "studies/reliability.yaml"],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_recipe_plans(tmp_path, recipe):
    (tmp_path / "config.yaml").write_text(recipe.read_text())
    out = snakemake(tmp_path, "--dry-run", "--printshellcmds")
    jobs = counted(out.stdout + out.stderr)
    told = [line.partition("Shell command: ")[2] for line in (out.stdout + out.stderr).splitlines()]
    commands = [line.split() for line in told if line.startswith("moesaic ")]
    for _, *words in commands:  # a job would end with argparse's words
        cli.parser().parse_args(words)
    assert len(commands) == sum(jobs.values()) - 1, "all but the target `all`"
    settings = yaml.safe_load(recipe.read_text())
    variants, stages = len(settings["variants"]), settings["stages"]
    assert jobs["report"] == 1
    assert jobs["construct"] == variants
    assert jobs["evaluate"] == variants * len(stages)
    assert ("chat" in jobs) == bool(
        settings["data"].get("chat") or settings["data"].get("images") is not None
    )
