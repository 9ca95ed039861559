"""Several ranks on one machine: submitit's LocalExecutor starts them, this file watches them.

submitit waits for all ranks, writes their output to files and keeps no exit codes; a rank that died would leave the
others in a collective for ever. So: show the output as it comes, pass stop requests on, and end the rest soon
after one rank failed.
"""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moesaic.flow import rank, signals

log = logging.getLogger("moesaic.launch")
GRACE = 10.0
"""Seconds that the other ranks get to fail by themselves after one died, before they are killed."""


def variables() -> dict[str, str | None]:
    """What the ranks need in their environment; None removes a variable."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        # submitit's controller overwrites it with a guess.
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def run(folder: Path, total: int) -> None:
    """Start the ranks of FOLDER/task.json and wait until all have ended; how, is in their outcomes."""
    import psutil
    import submitit

    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(tasks_per_node=total, timeout_min=60 * 24 * 365, stderr_to_stdout=True)
    with _ignored(signal.SIGUSR2, signal.SIGINT), _variables(SUBMITIT_LOG_LEVEL="WARNING"):
        job = executor.submit(rank.main, str(folder))
    tails = [_Tail(folder / f"{job.job_id}_{number}_log.out") for number in range(total)]
    controller = psutil.Process(int(job.job_id))
    log.info("%d ranks on this machine, controller pid %s", total, job.job_id)
    try:
        _watch(job, controller, folder, total, tails)
    finally:
        _kill(controller)
    for tail in tails:
        tail.relay(last=True)


def relay(lines: Iterable[str]) -> None:
    """Hand lines of the ranks on to the log, which adds the time."""
    for line in lines:
        logging.getLogger("moesaic.ranks").info("%s", line.rstrip("\n"))


def _watch(job: Any, controller: Any, folder: Path, total: int, tails: "list[_Tail]") -> None:
    """Show the ranks' output, pass a stop request on, and end the others soon after one rank failed."""
    seen: set[int] = set()
    forwarded, deadline = False, None
    while not job.done():
        for tail in tails:
            tail.relay()
        living = _living(controller)
        seen |= living.keys()
        outcomes = rank.read_outcomes(folder, total)
        if signals.stop_requested() and not forwarded and len(living) == total:
            forwarded = True
            for process in living.values():
                _send(process, signal.SIGUSR2)
        dead = [number for number in seen - living.keys() if number not in outcomes]
        failed = [item for item in outcomes.values() if item.code in (rank.FAILED, rank.WRONG_INPUT)]
        if (dead or failed) and deadline is None:
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for process in living.values():
                _send(process, signal.SIGKILL)
        time.sleep(0.1)


@contextlib.contextmanager
def _ignored(*numbers: signal.Signals) -> Iterator[None]:
    """Children started here ignore these: Ctrl-C, or Slurm's signal to all, must not end submitit's controller."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Tail:
    """Hands the new lines of a rank's output file to the log."""

    def __init__(self, path: Path):
        self.path, self.position, self.rest = path, 0, ""

    def relay(self, last: bool = False) -> None:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            file.seek(self.position)
            text = self.rest + file.read()
            self.position = file.tell()
        lines = text.split("\n")
        self.rest = "" if last else lines.pop()
        relay(line for line in lines if line)


def _living(controller: Any) -> dict[int, Any]:
    """Rank -> process, of the controller's children that run."""
    import psutil

    found = {}
    try:
        for child in controller.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                number = child.environ().get("SUBMITIT_LOCAL_GLOBALID")
                if number is not None and child.status() != psutil.STATUS_ZOMBIE:
                    found[int(number)] = child
    except psutil.NoSuchProcess:
        return {}
    return found


def _send(process: Any, number: signal.Signals) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _kill(controller: Any) -> None:
    """End the controller and its ranks when we leave before they did."""
    for process in [*_living(controller).values(), controller]:
        _send(process, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
