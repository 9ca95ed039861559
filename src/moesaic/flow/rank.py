"""What each rank of a step runs: set torch.distributed's variables, call the step, leave a word on how it ended.

Started by launch.py, through submitit's LocalExecutor or as `python -m moesaic.flow.rank FOLDER` through srun.
FOLDER holds task.json and receives one outcome-RANK.json per rank, because neither srun nor submitit hands on an
exception or tells which of several exit codes came first.
"""

import json
import logging
import os
import platform
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import InputError, Interrupted
from moesaic.flow import files, logs, signals
from moesaic.flow.step import Step, execute

log = logging.getLogger("moesaic.rank")
DONE, FAILED, WRONG_INPUT = 0, 1, 2


@dataclass(frozen=True)
class Outcome:
    """How a rank ended."""

    rank: int
    code: int
    """0 done, 75 interrupted, 2 the user's mistake, 1 any other exception."""
    message: str
    host: str
    time: float


def main(folder: str) -> None:
    """Run one rank of the step that FOLDER/task.json describes, then exit.

    Exits with 0 when interrupted, too: a non-zero code would make srun (--kill-on-bad-exit) kill rank 0 while
    it still writes its records. The launcher reads the outcome and exits with 75.
    """
    # Before anything slow is imported: a signal during the imports must not be lost, nor end the process.
    signals.install()
    task = json.loads((Path(folder) / "task.json").read_text(encoding="utf-8"))
    rank = _environment(task)
    _logging(rank)
    if task["launcher"] is not None:
        threading.Thread(target=_watch, args=(task["launcher"],), name="watch", daemon=True).start()
    inputs = {name: Path(path) for name, path in task["inputs"].items()}
    code, message = DONE, ""
    try:
        _device()
        execute(Step(**task["step"]), task["settings"], inputs, Path(task["out"]), rank)
    except Interrupted as error:
        code, message = Interrupted.EXIT_CODE, str(error)
    except InputError as error:
        code, message = WRONG_INPUT, str(error)
    except BaseException as error:
        code, message = FAILED, f"{type(error).__name__}: {error}".splitlines()[0]
        log.exception("rank %d failed", rank)
    outcome = Outcome(rank, code, message, platform.node(), time.time())
    files.write_json(outcome_path(Path(folder), rank), vars(outcome))
    if code in (FAILED, WRONG_INPUT):
        # The other ranks may be gone or stuck in a collective: leaving in order could wait for them for ever.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


def outcome_path(folder: Path, rank: int) -> Path:
    """Where a rank leaves its outcome."""
    return folder / f"outcome-{rank}.json"


def read_outcomes(folder: Path, ranks: int) -> dict[int, Outcome]:
    """Rank -> outcome, of the ranks that have left one."""
    # Listing the folder first makes a network file system look again for names that were absent a moment ago.
    present = set(os.listdir(folder))
    paths = {rank: outcome_path(folder, rank) for rank in range(ranks)}
    return {
        rank: Outcome(**json.loads(path.read_text(encoding="utf-8")))
        for rank, path in paths.items()
        if path.name in present
    }


def _environment(task: dict[str, Any]) -> int:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and the launcher's wishes; return the rank."""
    import submitit.helpers

    environment = submitit.helpers.TorchDistributedEnvironment()
    # The device is chosen by local rank (torch.cuda.set_device): rewriting the list of visible devices would
    # undo what Slurm allocated.
    environment.export(set_cuda_visible_devices=False, overwrite=True)
    for name, value in task["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return int(environment.rank)


def _device() -> None:
    """The GPU of this rank, for steps too that build no engine."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def _logging(rank: int) -> None:
    """Bare lines: the launcher adds the time. Ranks other than 0 only speak up for warnings."""
    form, level = (
        ("%(message)s", logging.INFO) if rank == 0 else (f"[rank {rank}] %(message)s", logging.WARNING)
    )
    logs.begin([logging.StreamHandler(sys.stderr)], form, level)


def _watch(launcher: int) -> None:
    """Save and stop when the launcher is gone (out of memory, kill -9): nobody would read our outcome."""
    import psutil

    while psutil.pid_exists(launcher):
        time.sleep(1.0)
    log.warning("the launcher (pid %d) is gone; saving and stopping", launcher)
    signals.request_stop()


if __name__ == "__main__":
    main(sys.argv[1])
    # Under srun all is written by now. Taking a process group down in order can wait for ranks that left: seen as a rank that
    # stayed until the job's time limit.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)
