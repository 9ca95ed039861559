"""Commands of the tiny project that are run to their end, or killed with SIGKILL when they have come so far."""

import signal
import subprocess
import sys
import time

from moesaic.flow import metrics


def command(name, *extra):
    """A step of the project's variant, to be run in its folder."""
    call = [sys.executable, "-m", "moesaic.cli", name, "--config", "config.yaml", "--variant", "activation"]
    return [*call, "--threads", "1", *extra]


def start(folder, call):
    """Start it in the folder; what it logs can be read from `stderr`."""
    return subprocess.Popen(call, cwd=folder, stderr=subprocess.PIPE, text=True)


def finish(folder, call, timeout=240):
    """Run to the end; returns what it logged."""
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def killed(folder, call, ready, timeout=120):
    """Start, kill -9 when `ready()`, check that it was not done."""
    process = start(folder, call)
    deadline = time.monotonic() + timeout
    while not ready() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"ended before it could be killed: {errors[-2000:]}"


def steps_written(stage):
    """The last step in a stage's metrics; 0 before the first."""
    path = stage / "work/metrics.jsonl"
    return max((item["step"] for item in metrics.read(path)), default=0) if path.exists() else 0


def saved(stage):
    """Whether a checkpoint of a training stage is on disk whole; it is written while the next steps run already."""
    return any((stage / "work/checkpoints").glob("step-*"))


def came_to(stage, step):
    """Whether a training stage has logged this step and can go on from a checkpoint."""
    return steps_written(stage) >= step and saved(stage)
