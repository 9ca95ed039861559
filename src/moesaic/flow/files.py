"""Atomic writes: a reader sees the old file, or the whole new one, never a half."""

import contextlib
import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import InputError

log = logging.getLogger("moesaic.flow")
LEFTOVER = re.compile(r"\..+\.(?:tmp-(?P<host>.+)-|old-)(?P<pid>\d+)")
"""Names that `atomic_path` gives while it writes."""
GRACE = 600.0
"""Seconds without a write after which a writer of another host is dead."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Make a file that was written to, or the renames in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_room(folder: Path, need: int, what: str, advice: str) -> None:
    """Look before writing `need` bytes. Raises InputError that names the folder and what is to be written there, with the advice."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need * 1.05 + 1e6:
        raise InputError(
            f"{folder}: no room on the disk for {what} ({need / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free); {advice}"
        )


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; fsync and rename on success, remove on failure. For files and folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.parent / f".{path.name}.tmp-{platform.node()}-{os.getpid()}"
    _remove(temporary)
    try:
        yield temporary
        for file in (
            [temporary] if temporary.is_file() else sorted(p for p in temporary.rglob("*") if p.is_file())
        ):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if path.is_dir():
            # A folder cannot be replaced in one call: move the old one aside first, so that nothing half-made carries the name.
            old = path.parent / f".{path.name}.old-{os.getpid()}"
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        fsync(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def refuse_existing(path: Path) -> None:
    """Raises InputError where something is in the way, which `atomic_path` would replace."""
    if path.exists():
        raise InputError(f"{path} exists already; give another name, or move it away")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON line for each record atomically, keys sorted, so that equal records give equal bytes."""
    write_text(path, "".join(json.dumps(item, sort_keys=True, ensure_ascii=False) + "\n" for item in records))


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; empty lines are left out. Raises OSError or ValueError."""
    # only at \n: str.splitlines would cut a text in two at U+2028, U+2029 and U+0085, which JSON does not escape
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `write_lines` wrote. Raises InputError naming a missing or damaged file."""
    try:
        return json_lines(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: missing or damaged ({error}); delete it and run its step again") from error


def sweep(paths: Iterable[Path]) -> None:
    """Remove those that are names of killed writers, whichever host they were on. For a folder whose lease we hold.

    Writers that live stay: this host's by their process, another rank's on another host by the time of its last write.
    """
    import psutil

    for path in paths:
        found = LEFTOVER.fullmatch(path.name)
        if found is None or not path.exists():
            continue
        mine = found["host"] in (None, platform.node())
        if mine and psutil.pid_exists(int(found["pid"])):
            continue
        with contextlib.suppress(FileNotFoundError):  # renamed under our eyes: its writer lives
            written = max(item.stat().st_mtime for item in (path, *path.rglob("*")))
            if time.time() - written > GRACE:
                log.info("%s: left behind by a killed process; removed", path)
                _remove(path)


def discard(folder: Path) -> None:
    """Delete a folder so that a process killed in between leaves nothing that looks like it: under another name, which `sweep` removes."""
    if folder.is_dir():
        old = folder.parent / f".{folder.name}.old-{os.getpid()}"
        _remove(old)
        folder.rename(old)
        shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _remove_leftovers(path: Path) -> None:
    """Temporary names that killed processes of this host left behind: a checkpoint's is gigabytes."""
    import psutil

    start = f".{path.name}.tmp-{platform.node()}-"
    for leftover in path.parent.glob(glob.escape(start) + "*"):
        pid = leftover.name.removeprefix(start)
        if pid.isdigit() and int(pid) != os.getpid() and not psutil.pid_exists(int(pid)):
            _remove(leftover)
