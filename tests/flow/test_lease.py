"""One writer per step folder: refuse beside a live owner, follow a dead one, never two at once."""

import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moesaic.errors import InputError
from moesaic.flow.lease import Lease

HOLD = """
import sys, time
from pathlib import Path
from moesaic.flow.lease import Lease
with Lease(Path(sys.argv[1]), heartbeat=0.05):
    print("held", flush=True)
    time.sleep(60)
"""
TAKE = """
import sys, time
from pathlib import Path
from moesaic.errors import InputError
from moesaic.flow.lease import Lease
while time.time() < float(sys.argv[2]):
    pass
try:
    with Lease(Path(sys.argv[1])):
        print("took", flush=True)
        sys.stdin.read()
except InputError:
    print("refused", flush=True)
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _foreign(
    path: Path, job: str | None = None, beat: str = "2020-01-01T00:00:00+00:00"
) -> dict[str, object]:
    """A lease that a process on another host wrote."""
    owner = {"token": "far:1:1", "host": "far", "pid": 1, "start": 1.0, "job": job, "beat": beat}
    path.write_text(json.dumps(owner))
    return owner


def test_taken_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "work" / "lease.json"
    with Lease(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(path.parent.iterdir()) == []


def test_second_writer_is_refused_with_the_owner_named(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    holder = _holder(path)
    try:
        with pytest.raises(InputError) as caught, Lease(path):
            pytest.fail("a second writer got in")
        text = str(caught.value)
        assert str(path) in text
        assert f"host {platform.node()}, pid {holder.pid}, Slurm job none" in text
        assert "wait for it or end it" in text
        assert "\n" not in text
    finally:
        holder.kill()
        holder.wait()


def test_second_writer_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    first = Lease(path).__enter__()
    threading.Timer(0.5, first.__exit__, (None, None, None)).start()
    began = time.monotonic()
    with Lease(path, wait=20.0):
        assert 0.3 < time.monotonic() - began < 10.0


def test_killed_owner_is_followed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    holder = _holder(path)
    holder.kill()
    holder.wait()
    assert json.loads(path.read_text())["pid"] == holder.pid
    began = time.monotonic()
    with Lease(path):
        assert time.monotonic() - began < 5.0
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    owner = {"token": "x", "host": platform.node(), "pid": os.getpid(), "start": 1.0, "job": None, "beat": ""}
    path.write_text(json.dumps(owner))
    with Lease(path):
        assert json.loads(path.read_text())["token"] != "x"


def test_heartbeat_moves_and_keeps_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    with Lease(path, heartbeat=0.05):
        first = json.loads(path.read_text())
        deadline = time.monotonic() + 5.0
        while (now := json.loads(path.read_text()))["beat"] == first["beat"]:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.02)
        assert now["token"] == first["token"]


def test_a_file_server_that_is_away_ends_neither_heartbeat_nor_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lease.json"
    read = Path.read_text
    away = threading.Event()
    beats = threading.Semaphore(0)

    def broken(self: Path, *args: str, **kwargs: str) -> str:
        if self == path and away.is_set():
            beats.release()
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", broken)
    with Lease(path, heartbeat=0.05):
        away.set()
        assert beats.acquire(timeout=10)
        assert beats.acquire(timeout=10), "it goes on beating"
        away.clear()
        first = json.loads(path.read_text())["beat"]
        deadline = time.monotonic() + 10.0
        while json.loads(path.read_text())["beat"] == first:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.02)
        away.set()
    assert "no heartbeat written" in caplog.text
    assert "not given back" in caplog.text


def test_silent_owner_elsewhere_is_followed_after_the_stale_time(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    # Its clock is an hour ahead of ours: only whether the heartbeat moves may count.
    _foreign(path, beat="2999-01-01T00:00:00+00:00")
    began = time.monotonic()
    with Lease(path, heartbeat=0.1, stale=1.0):
        assert 0.9 < time.monotonic() - began < 10.0


def test_beating_owner_elsewhere_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    # A slow clock: years behind, yet alive.
    _foreign(path)
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(0.3):
            count += 1
            temporary = path.with_suffix(".new")
            _foreign(temporary, beat=f"2020-01-01T00:00:{count % 60:02}+00:00")
            os.replace(temporary, path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="host far, pid 1"), Lease(path, heartbeat=0.1, stale=5.0):
            pytest.fail("took a living owner's lease")
    finally:
        stop.set()
        thread.join()
    assert json.loads(path.read_text())["host"] == "far"


def test_requeued_job_follows_itself_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lease.json"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    _foreign(path, job="4711")
    began = time.monotonic()
    with Lease(path):
        assert time.monotonic() - began < 5.0


def test_damaged_lease_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.write_text("{")
    with pytest.raises(InputError, match="damaged lease; make sure that no process writes here"), Lease(path):
        pytest.fail("took a damaged lease")


def test_of_several_takers_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    for _ in range(2):
        holder = _holder(path)
        holder.kill()
        holder.wait()
        start = str(time.time() + 1.5)
        takers = [
            subprocess.Popen(
                [sys.executable, "-c", TAKE, str(path), start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(4)
        ]
        words = [taker.stdout.readline().strip() for taker in takers if taker.stdout is not None]
        for taker in takers:
            taker.communicate("")
        assert sorted(words) == ["refused", "refused", "refused", "took"]
        assert list(tmp_path.iterdir()) == []
