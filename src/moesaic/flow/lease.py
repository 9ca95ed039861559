"""One writer per step folder: a lease file with owner, job id and heartbeat."""

import contextlib
import datetime
import hashlib
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
    """Context manager. A second writer waits `wait` seconds for a live owner, then refuses; it follows a dead one.

    An owner on this host is dead when its process is gone. One elsewhere is dead when it was the same Slurm job (a
    requeued job never runs twice), or when its heartbeat does not change while we watch for `stale` seconds: we
    compare what it wrote, never its clock with ours.
    """

    def __init__(self, path: Path, wait: float = 0.0, heartbeat: float = HEARTBEAT, stale: float = STALE):
        self.path, self.wait, self.heartbeat, self.stale = path, wait, heartbeat, stale
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._token = f"{platform.node()}:{os.getpid()}:{time.time_ns()}"

    def __enter__(self) -> "Lease":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        watched: tuple[str, str] | None = None
        since = began
        while not self._take():
            owner = self._read()
            if owner is None:
                continue
            now = time.monotonic()
            if watched != (owner["token"], owner["beat"]):
                beating = watched is not None and watched[0] == owner["token"]
                watched, since = (owner["token"], owner["beat"]), now
            alive = self._alive(owner)
            if alive is None:
                alive = True if beating else (None if now - since < self.stale else False)
            if alive is False:
                if self._take_over(owner):
                    break
            elif alive and now - began >= self.wait:
                raise InputError(
                    f"{self.path}: another process is writing here (host {owner['host']}, pid {owner['pid']}, Slurm "
                    f"job {owner['job'] or 'none'}, last heartbeat {owner['beat']}); wait for it or end it, then run "
                    "again"
                )
            else:
                if alive is None and now - since < 0.01:
                    log.info("%s: waiting to see whether its owner on %s lives", self.path, owner["host"])
                time.sleep(min(0.5, self.heartbeat))
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            owner = self._read()
            if owner is not None and owner["token"] == self._token:
                self.path.unlink(missing_ok=True)
        # The step's work is done; a lease without its process is taken over.
        except (OSError, InputError) as error:
            log.warning("%s: not given back (%s)", self.path, error)

    def _content(self) -> str:
        pid = os.getpid()
        owner = {"token": self._token, "host": platform.node(), "pid": pid, "start": _started(pid)}
        owner |= {"job": os.environ.get("SLURM_JOB_ID")}
        return json.dumps(owner | {"beat": datetime.datetime.now(datetime.UTC).isoformat()})

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

    def _take_over(self, dead: dict[str, Any]) -> bool:
        """Replace a dead owner's lease. Of several that want to, the one that links the claim for that owner may."""
        claim = (
            self.path.parent
            / f".{self.path.name}.claim-{hashlib.sha256(dead['token'].encode()).hexdigest()[:16]}"
        )
        temporary = self.path.parent / f".{self.path.name}.{platform.node()}.{os.getpid()}.{time.time_ns()}"
        temporary.write_text(self._content(), encoding="utf-8")
        try:
            os.link(temporary, claim)
        except FileExistsError:
            temporary.unlink()
            self._clear_old_claim(claim)
            time.sleep(0.05)
            return False
        try:
            # We may be late: the winner of an earlier claim has replaced the lease and dropped that claim.
            owner = self._read()
            if owner is None or owner["token"] != dead["token"]:
                temporary.unlink()
                return False
            log.warning(
                "%s: taking over from a dead process (host %s, pid %s)", self.path, dead["host"], dead["pid"]
            )
            os.replace(temporary, self.path)
        finally:
            claim.unlink()
        return True

    def _clear_old_claim(self, claim: Path) -> None:
        """A claim lives for milliseconds; one that is older than a minute is from a process killed in between."""
        with contextlib.suppress(FileNotFoundError):
            if time.time() - claim.stat().st_mtime > max(60.0, self.stale):
                claim.unlink()

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

    def _alive(self, owner: dict[str, Any]) -> bool | None:
        """None: on another host, its heartbeat will tell."""
        if owner["host"] == platform.node():
            started = _started(owner["pid"])
            # The start time is computed from the boot time, which moves a little when the clock is set.
            return started is not None and abs(started - owner["start"]) < 5.0
        if owner["job"] is not None and owner["job"] == os.environ.get("SLURM_JOB_ID"):
            return False
        return None

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            try:
                owner = self._read()
                if owner is None or owner["token"] != self._token:
                    log.error("%s: the lease was taken by another process; stop it, or this one", self.path)
                    return
                files.write_text(self.path, self._content())
            # A full disk, a file server that is away: the next beat may work.
            except (OSError, InputError) as error:
                log.warning("%s: no heartbeat written (%s)", self.path, error)


def _started(pid: int) -> float | None:
    """Start time of a process (seconds since the epoch), so that a reused pid is not taken for the owner; None if gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
