"""The residual stream of the calibration tokens, between two decoder layers, in memory-mapped files.

Two files take turns: a layer reads one and writes the other, so that a layer that was interrupted can start again.

Shapes: N blocks, T tokens, D model width.
"""

import errno
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from moesaic.errors import InputError
from moesaic.flow import files

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk, or of a user's share of it, without room."""
UNABLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system that cannot reserve: its files grow as they are written."""


def mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor in a file, made or reopened; the operating system keeps in memory what fits. Raises InputError when the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not whole(path, shape):
        _reserve(path, _bytes(shape))
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.float32).view(shape)


def whole(path: Path, shape: tuple[int, ...]) -> bool:
    """True for a file that holds a tensor of this shape."""
    return path.is_file() and path.stat().st_size == _bytes(shape)


def progress(state: Path, key: str, paths: Sequence[Path], shape: tuple[int, ...]) -> int | None:
    """What a state file says of the data files beside it. None without one, or where the data are gone: such a state is deleted."""
    if all(whole(path, shape) for path in paths):
        return int(files.read_json(state)[key]) if state.exists() else None
    state.unlink(missing_ok=True)
    return None


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)


def _reserve(path: Path, size: int) -> None:
    """Take the room on the disk now: a write to a mapped file that finds none ends the process with SIGBUS, and no word of why."""
    path.unlink(missing_ok=True)
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in FULL:
                path.unlink()
                raise InputError(
                    f"{path}: no room on the disk for {size / 1e9:.2f} GB; free some space, or lower experts.calibration.tokens"
                ) from error
            if error.errno not in UNABLE:
                raise


class Stream:
    """Hidden states [N, T, D] before layer `layer`; survives the process."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, int, int]):
        self.state_path = folder / f"{name}.json"
        self.paths = [folder / f"{name}-{turn}.bin" for turn in (0, 1)]
        self.shape = shape
        self.layer = progress(self.state_path, "layer", self.paths, shape) or 0
        self.files = [mapped(path, shape) for path in self.paths]

    @property
    def now(self) -> Tensor:
        """Hidden states that enter the layer."""
        return self.files[self.layer % 2]

    @property
    def after(self) -> Tensor:
        """Room for the hidden states that leave it."""
        return self.files[1 - self.layer % 2]

    def begin(self, hidden_NTD: Iterator[tuple[slice, Tensor]]) -> None:
        """Fill in the embeddings, unless the stream is already under way."""
        if self.layer:
            return
        for part, hidden in hidden_NTD:
            self.now[part] = hidden

    def advance(self) -> None:
        """The layer is done: what it wrote is on disk and is now what enters the next one."""
        files.fsync(self.paths[1 - self.layer % 2])
        self.layer += 1
        files.write_json(self.state_path, {"layer": self.layer})

    def remove(self) -> None:
        """Delete the files, first of all the state, which must not outlive its data; the stream cannot be used any more."""
        self.files = []
        for path in [self.state_path, *self.paths]:
            path.unlink(missing_ok=True)
