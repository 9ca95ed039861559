"""A throw-away two-node Slurm cluster on this one machine: real munge, slurmctld and two slurmd, fake GPUs, no database.

By hand, as root, with Debian's packages munge, slurmctld, slurmd and slurm-client:
    python tests/slurm/cluster.py                       # a shell inside the cluster
    python tests/slurm/cluster.py -- sinfo              # one command, then the cluster ends

Everything lives in one temporary folder and in a private mount namespace, where /etc/slurm and /etc/hosts are ours:
Snakemake's jobstep drops SLURM_CONF, so a configuration elsewhere would not be found by the inner srun.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NODES = ("node1", "node2")
GPUS = 4
CPUS = 32
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "nsenter", "unshare")
CREDENTIAL_SECONDS = 10
"""A requeued job is held for this long (Slurm's default: 120 s)."""

CONFIG = """\
ClusterName=moesaic
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={credential}
CredType=cred/munge
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2
SchedulerType=sched/builtin
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
GresTypes=gpu
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=100000 Gres=gpu:{gpus}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=100000 Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclasses.dataclass
class Cluster:
    """A running cluster; `run` and `popen` start commands inside it."""

    folder: Path
    namespace: int
    """Process whose mount namespace holds the cluster's /etc."""
    daemons: list[subprocess.Popen[bytes]]

    def inside(self, command: Sequence[str]) -> list[str]:
        """The same command, in the cluster's mount namespace and in the working directory of the caller."""
        return ["nsenter", f"--target={self.namespace}", "--mount", f"--wd={os.getcwd()}", "--", *command]

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, output captured; `cwd` as in subprocess.run."""
        return subprocess.run(self._at(command, options), capture_output=True, text=True, **options)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(self._at(command, options), text=True, **options)

    def restart_slurmd(self, node: str) -> None:
        """End a node's daemon and start another; the job steps on it live on."""
        place = len(self.daemons) - len(NODES) + NODES.index(node)
        old = self.daemons[place]
        old.send_signal(signal.SIGTERM)
        old.wait(10)
        started: list[subprocess.Popen[bytes]] = []
        _daemon(started, self.folder, self.inside(["slurmd", "-D", "-N", node]))
        self.daemons[place] = started[0]

    def logs(self) -> str:
        """The daemons' logs, for a failed test."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))
        )

    def _at(self, command: Sequence[str], options: dict[str, Any]) -> list[str]:
        # nsenter resolves the working directory inside the namespace, so it has to be told rather than inherited.
        inside = self.inside(command)
        if cwd := options.pop("cwd", None):
            inside[inside.index(f"--wd={os.getcwd()}")] = f"--wd={cwd}"
        return inside


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: munge slurmctld slurmd slurm-client)"
    if os.geteuid() != 0:
        return "needs root, for a private mount namespace and the Slurm daemons"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        return "this container does not allow a private mount namespace (CAP_SYS_ADMIN)"
    return None


@contextlib.contextmanager
def start(timeout: float = 30.0) -> Iterator[Cluster]:
    """Start a cluster, wait until both nodes are idle, and end all of it afterwards.

    Raises:
        RuntimeError: the nodes did not come up; the message holds the daemons' logs.
    """
    folder = Path(tempfile.mkdtemp(prefix="moesaic-slurm-"))
    folder.chmod(0o755)
    _write_files(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        holder = _daemon(
            daemons, folder, ["unshare", "--mount", "--propagation=private", "sh", "-c", _mounts(folder)]
        )
        _wait_until((folder / "mounted").exists, timeout, "the private mount namespace", folder)
        cluster = Cluster(folder, holder.pid, daemons)
        munge = [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={folder}/munge.key",
            f"--socket={folder}/munge.socket",
        ]
        munge += [
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        ]
        _daemon(daemons, folder, cluster.inside(munge))
        _wait_until((folder / "munge.socket").exists, timeout, "munged", folder)
        _daemon(daemons, folder, cluster.inside(["slurmctld", "-D"]))
        for node in NODES:
            _daemon(daemons, folder, cluster.inside(["slurmd", "-D", "-N", node]))

        def idle() -> bool:
            return cluster.run(["sinfo", "-h", "-N", "-o", "%T"]).stdout.split() == ["idle"] * len(NODES)

        _wait_until(idle, timeout, "two idle nodes", folder)
        yield cluster
        cluster.run(["scancel", "--full", "--signal=KILL", "--user=root"])
    finally:
        _end(daemons, folder)


def _write_files(folder: Path) -> None:
    (folder / "etc").mkdir()
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool-{node}").mkdir()
    sockets = [socket.socket() for _ in range(3)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    values = {
        "host": socket.gethostname().split(".")[0],
        "folder": folder,
        "ports": ports,
        "cpus": CPUS,
        "gpus": GPUS,
    }
    (folder / "etc" / "slurm.conf").write_text(CONFIG.format(credential=CREDENTIAL_SECONDS, **values))
    for number in range(GPUS):
        # slurmd takes any character device for a GPU; links need no right to make device nodes.
        (folder / f"gpu{number}").symlink_to("/dev/null")
    gres = "".join(f"NodeName={node} Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n" for node in NODES)
    (folder / "etc" / "gres.conf").write_text(gres)
    names = f"\n127.0.0.1 {' '.join(NODES)}\n"
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)


def _mounts(folder: Path) -> str:
    """Shell of the process that holds the namespace."""
    return (
        f"mkdir -p /etc/slurm && mount --bind {folder}/etc /etc/slurm && mount --bind {folder}/hosts /etc/hosts "
        f"&& touch {folder}/mounted && exec sleep infinity"
    )


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _daemon(
    daemons: list[subprocess.Popen[bytes]], folder: Path, command: list[str]
) -> subprocess.Popen[bytes]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))
    }
    with (folder / "daemons.log").open("ab") as log:
        # An own session: the test run's Ctrl-C must reach us, not the daemons, which end in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment | {"PATH": _path()},
        )
    daemons.append(process)
    return process


def _wait_until(condition: Any, timeout: float, what: str, folder: Path) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"the test cluster did not get {what} in {timeout:.0f} s\n{logs}")
        time.sleep(0.1)


def _end(daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """End the daemons by their own pids, last first, then whatever a job left behind (found by the spool folder)."""
    for process in reversed(daemons):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for process in _step_daemons(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _step_daemons(folder: Path) -> list[int]:
    """Pids of slurmstepd of this cluster: their own log or spool files are open in our folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if not (entry / "comm").read_text().startswith("slurmstepd"):
                continue
            targets = [os.readlink(link) for link in (entry / "fd").iterdir()]
        except OSError:  # the process ended while we looked
            continue
        if any(target.startswith(str(folder)) for target in targets):
            found.append(int(entry.name))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, or a shell, inside a fresh cluster."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="*", default=[os.environ.get("SHELL", "/bin/bash")])
    command = parser.parse_args(argv).command
    if reason := missing():
        sys.stderr.write(f"no Slurm test cluster: {reason}\n")
        return 2
    # A SIGTERM must end the daemons as well, not only this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with start() as cluster:
        return subprocess.run(cluster.inside(command)).returncode


if __name__ == "__main__":
    sys.exit(main())
