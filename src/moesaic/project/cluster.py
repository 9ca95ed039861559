"""What `sinfo` says of a cluster, and the stock Slurm profile fitted to it."""

import re
import shutil
import subprocess
from dataclasses import dataclass

from moesaic.errors import InputError

FORMAT = "%P|%l|%c|%m|%G|%D"
"""sinfo: partition (* marks the default), time limit, CPUs and MB of a node, generic resources, nodes."""
MEMORY_SHARE = 0.95
"""Of a node's memory that a job asks for at most."""


@dataclass(frozen=True)
class Partition:
    """One line of sinfo."""

    name: str
    default: bool
    minutes: int | None
    """Longest job; None: no limit."""
    cpus: int
    """Of a node, the smallest one's."""
    memory: int
    """MB of a node, the smallest one's."""
    gpus: int
    """Of a node."""
    nodes: int


def read() -> list[Partition] | None:
    """The partitions of the cluster that this machine belongs to; None without Slurm.

    Raises:
        InputError: sinfo is there and fails.
    """
    if shutil.which("sinfo") is None:
        return None
    found = subprocess.run(["sinfo", "--noheader", f"--format={FORMAT}"], capture_output=True, text=True)
    if found.returncode:
        raise InputError(
            f"sinfo failed: {found.stderr.strip() or found.returncode}; run it by hand, or use --no-cluster for the profile as it is shipped"
        )
    return parse(found.stdout)


def parse(text: str) -> list[Partition]:
    """Partitions from sinfo's lines; several lines of one (unlike nodes) count as the smallest node, and the largest number of GPUs."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        cells = line.strip().split("|")
        if len(cells) != len(FORMAT.split("|")):
            raise InputError(f"sinfo printed a line that cannot be read: '{line}'")
        name, limit, cpus, memory, generic, nodes = cells
        new = Partition(
            name.rstrip("*"),
            name.endswith("*"),
            minutes(limit),
            _number(cpus),
            _number(memory),
            gpus(generic),
            int(nodes),
        )
        old = found.get(new.name)
        found[new.name] = new if old is None else Partition(
            new.name, new.default, new.minutes, min(old.cpus, new.cpus), min(old.memory, new.memory),
            max(old.gpus, new.gpus), old.nodes + new.nodes,
        )  # fmt: skip
    return list(found.values())


def minutes(text: str) -> int | None:
    """'infinite' (or none said), '30:00', '12:00:00' or '7-00:00:00' in minutes."""
    if text.lower() in ("infinite", "unlimited", "n/a"):
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minute = (0, parts[0]) if len(parts) < 3 else (parts[0], parts[1])
    return int(days or 0) * 1440 + hours * 60 + minute


def gpus(text: str) -> int:
    """GPUs in a list of generic resources, such as 'gpu:a100:4(S:0-1),lustre:1'."""
    counts = re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)(?=[(,]|$)", text)
    return sum(int(count) for count in counts)


def _number(text: str) -> int:
    """'128+' (unlike nodes) is the smallest one's."""
    return int(text.rstrip("+"))


def choose(partitions: list[Partition], wanted: str | None) -> Partition:
    """The partition that is asked for; else one with GPUs, else the default, else the one with most nodes.

    Raises:
        InputError: there is none of that name, or none at all.
    """
    if not partitions:
        raise InputError("sinfo lists no partition; is this account allowed on the cluster?")
    if wanted is not None:
        for item in partitions:
            if item.name == wanted:
                return item
        raise InputError(f"--partition {wanted}: sinfo lists {', '.join(item.name for item in partitions)}")
    return max(partitions, key=lambda item: (item.gpus > 0, item.default, item.nodes))


def fit(profile: str, partition: Partition) -> str:
    """The stock profile's text for this partition: its name, and no more time, cores, memory and GPUs than a node has."""
    lines, section = [], ""
    for line in profile.splitlines():
        if line.strip().startswith("# slurm_partition:"):
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f'{indent}slurm_partition: "{partition.name}"')
            continue
        if top := re.match(r"([\w-]+):", line):
            section = top[1]
        if not line.strip().startswith("#"):
            if not partition.gpus and re.match(r"\s*(gres|tasks_per_gpu):", line):
                continue
            line = _cap(line, "mem_mb", int(partition.memory * MEMORY_SHARE))
            line = _cap(line, "runtime", partition.minutes)
            if section == "set-threads":
                line = _cap(line, r"\w+", partition.cpus)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _cap(line: str, key: str, most: int | None) -> str:
    if most is None:
        return line
    return re.sub(rf"\b({key}): (\d+)", lambda found: f"{found[1]}: {min(int(found[2]), most)}", line)
