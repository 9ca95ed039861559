"""Training checkpoints: weights, optimizer, RNG, mixture and data position; safetensors and JSON only, nothing to unpickle.

A checkpoint is a folder `step-00000120` that appears by one rename when all of it is on disk; `checkpoint.json` in it lists sizes
and SHA-256 of its files, which are checked before anything is loaded.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moesaic.errors import InputError
from moesaic.flow import files

log = logging.getLogger("moesaic.checkpoint")
INDEX = "checkpoint.json"


class Writer:
    """Writes checkpoints in a thread, while training goes on with the next steps; one at a time."""

    def __init__(self, folder: Path, keep: int, keep_every: int | None = None):
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.running: Future[Path] | None = None

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Copy everything as it is now and begin to write. Raises what the save before this one met, and InputError for a full disk."""
        self.wait()
        _check_room(self.folder, tensors)
        copies = {
            name: {key: value.detach().to("cpu", copy=True).contiguous() for key, value in group.items()}
            for name, group in tensors.items()
        }
        self.running = self.pool.submit(
            save, self.folder, step, copies, json.loads(json.dumps(state)), self.keep, self.keep_every
        )

    def wait(self) -> None:
        """Until the last save is on disk. Raises what it met."""
        if self.running is not None:
            running, self.running = self.running, None
            running.result()


def save(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    keep: int,
    keep_every: int | None = None,
) -> Path:
    """Write checkpoint `step` below `folder`, then remove all but the newest `keep` and the multiples of `keep_every`.

    Args:
        tensors: file name -> named tensors (weights, optimizer, rng). state: JSON-able (step, sampler, mixture, identity).
    """
    _check_room(folder, tensors)
    path = folder / f"step-{step:08d}"
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        for name, group in tensors.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in group.items()},
                temporary / f"{name}.safetensors",
            )
        (temporary / "state.json").write_text(json.dumps(state, sort_keys=True), encoding="utf-8")
        members = [
            {"path": p.name, "bytes": p.stat().st_size, "sha256": files.sha256(p)}
            for p in sorted(temporary.iterdir())
        ]
        (temporary / INDEX).write_text(
            json.dumps({"step": step, "files": members}, indent=1), encoding="utf-8"
        )
    for old in steps(folder)[:-keep]:
        if keep_every is None or int(old.name.removeprefix("step-")) % keep_every:
            shutil.rmtree(old)
    return path


def steps(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def remove_leftovers(folder: Path) -> None:
    """Delete what killed saves left; by one rank only."""
    for leftover in folder.glob(".step-*") if folder.is_dir() else []:
        shutil.rmtree(leftover)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint."""
    found = steps(folder)
    return found[-1] if found else None


def load_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint, after all its files were checked.

    Raises:
        InputError: a file is missing, cut short or altered.
    """
    remedy = f"delete {path} and run again; training goes on from the checkpoint before it, or from the start"
    index = path / INDEX
    try:
        members = json.loads(index.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{index}: missing or damaged ({error}); {remedy}") from error
    for member in members:
        file = path / member["path"]
        if not file.is_file() or file.stat().st_size != member["bytes"]:
            raise InputError(f"{file}: missing or cut short; {remedy}")
        if files.sha256(file) != member["sha256"]:
            raise InputError(f"{file}: damaged, its SHA-256 differs from {INDEX}; {remedy}")
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return state


def load_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """One group of tensors of a checkpoint, on the CPU."""
    return load_file(path / f"{name}.safetensors")


def clear(folder: Path) -> None:
    """Remove all checkpoints of a finished run, those of other settings too."""
    for found in (folder, *_aside(folder)):
        files.discard(found)


def choose(folder: Path, identity: str, records: Sequence[Path]) -> int | None:
    """Put the checkpoints of these settings and inputs in place. Those of others are set aside, the newest such set is kept, and comes back with its settings; by one
    rank only.

    Args:
        identity: digest of all that the result depends on. records: files beside the folder that were written along (metrics), which go with it.

    Returns:
        The step of the checkpoints that were set aside; None where nothing was.
    """
    own, newest, step = _place(folder, identity), latest(folder), None
    if newest is not None:
        try:
            state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # damaged: load_state says so
        if state["identity"] == identity:
            _bring(records, folder)  # killed while they were set aside
            return None
        step = int(state["step"])
        for other in _aside(folder):
            if other != own:
                files.discard(other)
        for record in records:
            if record.exists():
                record.replace(folder / record.name)
        folder.rename(_place(folder, state["identity"]))
    if own.is_dir():
        if folder.is_dir():  # empty: the first save had not begun
            files.discard(folder)
        _bring(records, own)
        own.rename(folder)
    return step


def _bring(records: Sequence[Path], place: Path) -> None:
    """Records that lie among checkpoints, back to where they are written."""
    for record in records:
        if (place / record.name).exists():
            (place / record.name).replace(record)


def _place(folder: Path, identity: str) -> Path:
    """Where checkpoints of other settings wait."""
    return folder.with_name(f"{folder.name}-{identity[:16]}")


def _aside(folder: Path) -> list[Path]:
    return sorted(folder.parent.glob(f"{folder.name}-*"))


def rng_state() -> dict[str, Tensor]:
    """Random state of torch on CPU and on every CUDA device of this process."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """What `rng_state` gave; GPUs that were not there keep theirs."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(
            [state[f"cuda{i}"] for i in range(torch.cuda.device_count()) if f"cuda{i}" in state]
        )


def _check_room(folder: Path, tensors: dict[str, dict[str, Tensor]]) -> None:
    need = sum(value.nbytes for group in tensors.values() for value in group.values())
    others = ", ".join(str(path) for path in _aside(folder))
    advice = (
        f"free some space (checkpoints of other settings, which may go: {others})"
        if others
        else "free some space"
    )
    files.check_room(
        folder, need, "a checkpoint", f"{advice} and run again, training goes on from the last checkpoint"
    )
