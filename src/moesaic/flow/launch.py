"""Start a step's ranks: in this process, on this machine, or on the nodes of a Slurm allocation.

Which one follows from the number of ranks and from where we are:

- inline: one rank; the step runs in this process.
- local: several ranks on one machine, see local.py. Also inside a Slurm job whose single task holds all of the
  node's resources (a nested srun would wait for them for ever).
- slurm: several ranks inside an allocation of Snakemake's slurm plugin; one srun starts them.

The plugin's jobstep drops most SLURM_* variables, so nodes and tasks are passed to srun explicitly. How signals
travel is told in profiles/slurm/README.md; what reaches this process is passed on to the ranks.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import InputError, Interrupted
from moesaic.flow import files, local, rank, signals
from moesaic.flow.rank import Outcome
from moesaic.flow.step import Step, execute

log = logging.getLogger("moesaic.launch")
OUTCOME_WAIT = 60.0
"""Seconds in which a finished rank's outcome must show up; network file systems cache folders about as long."""
PSEUDO_STEPS = 0xFFFFFFF0
"""Slurm numbers the steps of batch scripts and interactive shells from here; they hold no resources."""


@dataclass(frozen=True)
class Ranks:
    """How many processes, where."""

    nodes: int = 1
    per_node: int = 1
    threads: int | None = None
    """CPU threads of one task as Snakemake and Slurm count them: of each rank in inline and slurm mode, of all
    ranks together in local mode, where they share the cores of one job."""

    @property
    def total(self) -> int:
        """Number of ranks."""
        return self.nodes * self.per_node


class RankFailed(RuntimeError):
    """A rank ended with an exception, or without a word; its traceback is in the log above."""


@dataclass(frozen=True)
class _Call:
    """What every rank is to run."""

    step: Step
    settings: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path


def run(step: Step, settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, ranks: Ranks) -> None:
    """Run a step with the ranks that were asked for, and wait for its end.

    Raises:
        InputError: the ranks do not fit the step or the machine, or a rank met a user's mistake.
        Interrupted: asked to stop (SIGTERM, SIGUSR2, Ctrl-C); the step saved its work and can go on.
        RankFailed: a rank died; the others were ended.
    """
    call = _Call(step, settings, inputs, out)
    match mode(step, ranks, os.environ):
        case "inline":
            _run_inline(call, ranks)
        case "local":
            _run_local(call, ranks)
        case "slurm":
            _run_slurm(call, ranks)


def mode(step: Step, ranks: Ranks, environment: Mapping[str, str]) -> str:
    """inline, local or slurm."""
    if ranks.nodes < 1 or ranks.per_node < 1:
        raise InputError(f"nodes {ranks.nodes}, ranks per node {ranks.per_node}: both must be at least 1")
    if ranks.total == 1:
        return "inline"
    if not step.distributed:
        raise InputError(f"step {step.name} runs as one process; set its nodes and ranks_per_node to 1")
    inside_task = int(environment.get("SLURM_STEP_ID", PSEUDO_STEPS)) < PSEUDO_STEPS
    if "SLURM_JOB_ID" in environment and not inside_task:
        return "slurm"
    if ranks.nodes == 1:
        return "local"
    if inside_task:
        raise InputError(
            f"step {step.name}: this Slurm task sees one node, {ranks.nodes} were asked for; give the rule the "
            "resources mpi: srun and tasks_per_node (or tasks), see profiles/slurm/README.md"
        )
    raise InputError(
        f"step {step.name}: {ranks.nodes} nodes need a Slurm allocation; use --profile slurm, or set nodes to 1"
    )


def srun_command(folder: Path, ranks: Ranks) -> list[str]:
    """The srun call; everything is said explicitly because the jobstep dropped Slurm's own variables."""
    command = ["srun", f"--nodes={ranks.nodes}", f"--ntasks={ranks.total}"]
    command += [f"--ntasks-per-node={ranks.per_node}", "--kill-on-bad-exit=1", "--wait=0", "--mpi=none"]
    command += ["--export=ALL", "--job-name=moesaic"]
    if ranks.threads:
        command.append(f"--cpus-per-task={ranks.threads}")
    return [*command, sys.executable, "-u", "-m", "moesaic.flow.rank", str(folder)]


def _run_inline(call: _Call, ranks: Ranks) -> None:
    threads = ranks.threads or int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
    if threads:
        os.environ.update(_thread_variables(threads))
        if "torch" in sys.modules:  # it read the variables when it was imported
            sys.modules["torch"].set_num_threads(threads)
    # Steps that do not train have nothing to save: a signal ends them as it ends any program.
    with _stop_signals() if call.step.distributed else contextlib.nullcontext():
        execute(call.step, call.settings, call.inputs, call.out)


def _run_local(call: _Call, ranks: Ranks) -> None:
    cores = ranks.threads or len(os.sched_getaffinity(0))
    variables = {**_thread_variables(max(1, cores // ranks.total)), **local.variables()}
    with _stop_signals(), _task(call, variables, os.getpid()) as folder:
        local.run(folder, ranks.total)
        _conclude(rank.read_outcomes(folder, ranks.total), ranks.total, "")


def _run_slurm(call: _Call, ranks: Ranks) -> None:
    variables = _thread_variables(ranks.threads) if ranks.threads else {}
    job = os.environ["SLURM_JOB_ID"]
    with _stop_signals(), _task(call, variables, None) as folder:
        log.info("%d nodes with %d ranks each, Slurm job %s", ranks.nodes, ranks.per_node, job)
        process = subprocess.Popen(
            srun_command(folder, ranks),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # submitit's helper reads these, and the jobstep took the second one away.
            env=os.environ | {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_NUM_NODES": str(ranks.nodes)},
        )
        reader = threading.Thread(target=local.relay, args=(process.stdout,), name="relay", daemon=True)
        reader.start()
        forwarded = False
        try:
            while process.poll() is None:
                if signals.stop_requested() and not forwarded:
                    forwarded = True
                    process.send_signal(signal.SIGUSR2)  # srun hands it to every rank
                time.sleep(0.1)
        except BaseException:
            process.kill()
            raise
        reader.join(local.GRACE)
        outcomes = _wait_for_outcomes(folder, ranks.total, process.returncode)
        _conclude(outcomes, ranks.total, f"srun ended with {process.returncode}")


def _wait_for_outcomes(folder: Path, total: int, code: int) -> dict[int, Outcome]:
    """All outcomes when srun ended well; otherwise those that show up soon."""
    deadline = time.monotonic() + (OUTCOME_WAIT if code == 0 else 1.0)
    while len(outcomes := rank.read_outcomes(folder, total)) < total and time.monotonic() < deadline:
        time.sleep(0.2)
    return outcomes


def _conclude(outcomes: dict[int, Outcome], total: int, remark: str) -> None:
    """Return when all ranks are done; otherwise raise what went wrong, a user's mistake before what it caused."""
    by_time = sorted(outcomes.values(), key=lambda item: item.time)
    for item in by_time:
        if item.code == rank.WRONG_INPUT:
            raise InputError(item.message)
    failed = [item for item in by_time if item.code == rank.FAILED]
    silent = sorted(set(range(total)) - outcomes.keys())
    if silent and not failed and signals.stop_requested():
        raise Interrupted(f"stopped; ranks {silent} ended before they could save, the last checkpoint counts")
    if failed or silent:
        parts = []
        if silent:
            names = ", ".join(map(str, silent))
            parts.append(f"rank {names} of {total} ended without a word (killed, or out of memory)")
        parts += [f"rank {item.rank} of {total} on {item.host} failed with {item.message}" for item in failed]
        raise RankFailed("; ".join([*parts, remark] if remark else parts))
    for item in sorted(by_time, key=lambda item: item.rank):
        if item.code == Interrupted.EXIT_CODE:
            raise Interrupted(item.message)


@contextlib.contextmanager
def _task(call: _Call, variables: Mapping[str, str | None], launcher: int | None) -> Iterator[Path]:
    """A folder under out/work, which all nodes see: it tells the ranks what to run and receives their outcomes."""
    work = call.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="launch-", dir=work)).absolute()
    task = {
        "step": dataclasses.asdict(call.step),
        "settings": dict(call.settings),
        "inputs": {name: str(path) for name, path in call.inputs.items()},
        "out": str(call.out),
        "environment": dict(variables),
        "launcher": launcher,
    }
    try:
        files.write_json(folder / "task.json", task)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Catch the stop signals from now on: one that arrives before the training loop starts counts, too."""
    signals.clear()
    with signals.caught():
        yield


def _thread_variables(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
