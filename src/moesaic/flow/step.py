"""Run one step under the contract: checked inputs, a lease, run.json beside, manifest.json last."""

import datetime
import importlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from moesaic import config
from moesaic.flow import files, manifest
from moesaic.flow.lease import Lease
from moesaic.flow.manifest import Manifest
from moesaic.settings import compared

log = logging.getLogger("moesaic.step")


@dataclass
class Result:
    """What a step's function returns."""

    outputs: list[str]
    """Files or folders, relative to the step's folder."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Headline numbers for the manifest: deterministic."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Times, speeds and memory, for run.json."""
    cleanup: Callable[[], None] | None = None
    """Called when the manifest is written: what a killed step would go on from is not needed any more."""


@dataclass(frozen=True)
class Context:
    """What a step's function gets."""

    settings: dict[str, Any]
    inputs: dict[str, Manifest]
    out: Path
    """The step's folder, e.g. results/activation/pretrain."""
    work: Path
    """out/work: undeclared, so it survives failure, retry and requeue."""
    name: str
    """What to call the step in logs, e.g. 'activation/pretrain'."""


@dataclass(frozen=True)
class Step:
    """A step: its function is `function` of `module`, imported when it runs."""

    name: str
    module: str
    function: str = "run"
    version: int = 1
    """Raise it when the step's result changes, so that finished runs are made again."""
    distributed: bool = False
    """True: several ranks may run it; rank 0 keeps the contract."""


STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step("dense", "moesaic.model.dense", version=2),
        Step("documents", "moesaic.data.documents", version=2),
        Step("tokens", "moesaic.data.tokens"),
        Step("images", "moesaic.data.images.step", version=2),
        Step("chat", "moesaic.data.chat"),
        Step("tasks", "moesaic.evaluate.tasks"),
        Step("temporal", "moesaic.evaluate.temporal.step", version=4),
        Step("science", "moesaic.evaluate.science.step", version=2),
        Step("reliability", "moesaic.evaluate.reliability.step", version=4),
        Step("construct", "moesaic.experts.construct", version=3),
        Step("pretrain", "moesaic.train.pretrain", version=2, distributed=True),
        Step("tune", "moesaic.train.tune", version=2, distributed=True),
        Step("sample", "moesaic.preference.sampling"),
        Step("rate", "moesaic.preference.rating"),
        Step("preference", "moesaic.preference.step", version=3, distributed=True),
        Step("teacher_text", "moesaic.distill.sampling", function="teacher"),
        Step("student_text", "moesaic.distill.sampling", function="student"),
        Step("pair_scores", "moesaic.distill.scoring"),
        Step("distill", "moesaic.distill.step", version=3, distributed=True),
        Step("teacher", "moesaic.distill.teach", distributed=True),
        Step("evaluate_part", "moesaic.evaluate.shards", version=4),
        Step("evaluate", "moesaic.evaluate.step", version=4),
        Step("report", "moesaic.report.step"),
    )
}


def execute(
    step: Step, settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, rank: int = 0
) -> None:
    """Run a step in this process. Ranks other than 0 only call the function; they write nothing of the contract."""
    function: Callable[[Context], Result | None] = getattr(
        importlib.import_module(step.module), step.function
    )
    parts = out.parts[1:] if len(out.parts) > 1 else out.parts
    context = Context(
        dict(settings),
        {name: manifest.read(path) for name, path in inputs.items()},
        out,
        out / "work",
        "/".join(parts),
    )
    if rank != 0:
        function(context)
        return
    out.mkdir(parents=True, exist_ok=True)
    context.work.mkdir(exist_ok=True)
    with Lease(context.work / "lease.json"):
        (out / manifest.NAME).unlink(missing_ok=True)
        _sweep(context)
        run = _run_record(step, settings, context.work / "run.json")
        began = time.monotonic()
        try:
            result = function(context)
        finally:
            run["seconds"] = round(run.get("seconds", 0.0) + time.monotonic() - began, 3)
            run["ended"] = _now()
            files.write_json(context.work / "run.json", run)
        assert result is not None, f"step {step.name} returned nothing"
        made = manifest.make(out, step.name, step.version, settings, inputs, result.outputs, result.metrics)
        # Only now, close to the manifest: killed in between, a step would be taken for a finished one that is begun afresh.
        files.write_json(out / "run.json", run | {"measured": result.measured})
        manifest.save(made)
        if result.cleanup is not None:
            result.cleanup()
        _sweep(context)  # what was too young at the beginning
    log.info("%s done in %.0f s", context.name, run["seconds"])


def _sweep(context: Context) -> None:
    """Not deeper into the step's folder: other steps have theirs below those of the dense parent and of the report."""
    files.sweep([*context.out.glob(".*"), *context.work.rglob(".*")])


def _run_record(step: Step, settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Host, time, versions and job ids; `seconds` and `attempts` add up over the attempts of the same settings, as far as they are compared."""
    digest = config.digest(compared(settings))
    record: dict[str, Any] = {
        "step": step.name,
        "settings_digest": digest,
        "started": _now(),
        "attempts": 1,
        "host": platform.node(),
        "pid": os.getpid(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "git_commit": os.environ.get("MOESAIC_GIT_COMMIT"),
        "python": platform.python_version(),
        "command": sys.argv,
        "versions": {
            name: metadata.version(name)
            for name in ("moesaic", "torch", "transformers", "pyarrow", "snakemake")
        },
    }
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before.get("settings_digest") == digest and not (path.parent.parent / "run.json").exists():
            record.update(
                started=before["started"], attempts=before["attempts"] + 1, seconds=before.get("seconds", 0.0)
            )
    (path.parent.parent / "run.json").unlink(missing_ok=True)
    files.write_json(path, record)
    return record


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
