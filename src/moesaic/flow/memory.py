"""Memory that a process may still take: the host's, and what its control groups (a container's, a Slurm job's) leave of it."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
VERSIONS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Controller -> names of limit, usage, and of the cached files in memory.stat, which give way (version 2, version 1)."""


def free() -> int:
    """Bytes."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_groups()])


def _groups() -> Iterator[int]:
    """What each limited group above this process has left."""
    lines = GROUPS.read_text(encoding="utf-8").splitlines() if GROUPS.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in VERSIONS.keys() & set(controllers.split(",")):
            root = ROOT / controller
            place = root / path.lstrip("/")
            # inside of a container the path may be the host's: then the root is the container's own group
            for folder in (place, *place.parents) if place.is_dir() else (root,):
                left = _left(folder, *VERSIONS[controller])
                if left is not None:
                    yield left
                if folder == root:
                    break


def _left(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """None: the group is not limited."""
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not most.isdigit():
        return None
    return max(0, int(most) - used + int(stat.get(cached, 0)))
