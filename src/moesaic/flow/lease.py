"""One writer per step folder: a lease file with owner, job id and heartbeat."""

import datetime
import json
import logging
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

from moesaic.errors import InputError
from moesaic.flow import files

log = logging.getLogger("moesaic.lease")
HEARTBEAT = 10.0
STALE = 60.0


class Lease:
    """Context manager. A second writer waits `wait` seconds for a live owner, then refuses; a dead owner's lease is taken over.

    An owner on the same host is dead when its process is gone; one elsewhere, when its heartbeat is older than `stale` seconds.
    """

    def __init__(self, path: Path, wait: float = 0.0, heartbeat: float = HEARTBEAT, stale: float = STALE):
        self.path, self.wait, self.heartbeat, self.stale = path, wait, heartbeat, stale
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._token = f"{platform.node()}:{os.getpid()}:{time.time_ns()}"

    def __enter__(self) -> "Lease":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.wait
        while not self._take():
            owner = self._read()
            if owner is not None and self._alive(owner):
                if time.monotonic() >= deadline:
                    raise InputError(
                        f"{self.path}: another process is writing here (host {owner['host']}, pid {owner['pid']}, "
                        f"Slurm job {owner['job'] or 'none'}, last heartbeat {owner['beat']}); wait for it or end it, then run again"
                    )
                time.sleep(min(1.0, self.heartbeat))
                continue
            if owner is not None:
                self._take_over(owner)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        owner = self._read()
        if owner is not None and owner["token"] == self._token:
            self.path.unlink(missing_ok=True)

    def _content(self) -> str:
        beat = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        job = os.environ.get("SLURM_JOB_ID")
        return json.dumps(
            {
                "token": self._token,
                "host": platform.node(),
                "pid": os.getpid(),
                "start": _started(os.getpid()),
                "job": job,
                "beat": beat,
            }
        )

    def _take(self) -> bool:
        """Create the lease in one atomic call (link fails when the name exists, on NFS too)."""
        temporary = self.path.parent / f".{self.path.name}.{os.getpid()}.{time.time_ns()}"
        temporary.write_text(self._content(), encoding="utf-8")
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def _take_over(self, dead: dict[str, Any]) -> None:
        """Move the dead owner's lease away; when another process was quicker and it is theirs, put it back."""
        log.warning(
            "%s: taking over the lease of a dead process (host %s, pid %s)",
            self.path,
            dead["host"],
            dead["pid"],
        )
        aside = self.path.parent / f".{self.path.name}.dead.{os.getpid()}.{time.time_ns()}"
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if json.loads(aside.read_text(encoding="utf-8"))["token"] != dead["token"]:
            os.link(aside, self.path)
        aside.unlink()

    def _read(self) -> dict[str, Any] | None:
        try:
            owner: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{self.path}: damaged lease; make sure that no process writes here, delete it and run again"
            ) from error
        return owner

    def _alive(self, owner: dict[str, Any]) -> bool:
        if owner["host"] == platform.node():
            started = _started(owner["pid"])
            return started is not None and started == owner["start"]
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(owner["beat"])
        return age.total_seconds() < self.stale

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            owner = self._read()
            if owner is None or owner["token"] != self._token:
                log.error("%s: the lease was taken by another process; stop it, or this one", self.path)
                return
            files.write_text(self.path, self._content())


def _started(pid: int) -> float | None:
    """Start time of a process (seconds since the epoch), so that a reused pid is not taken for the owner; None if gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
