"""The residual stream of the calibration tokens, between two decoder layers, in memory-mapped files.

Two files take turns: a layer reads one and writes the other, so that a layer that was interrupted can start again.

Shapes: N blocks, T tokens, D model width.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from moesaic.flow import files


def mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor in a file, made or reopened; the operating system keeps in memory what fits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.float32).view(shape)


class Stream:
    """Hidden states [N, T, D] before layer `layer`; survives the process."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, int, int]):
        self.state_path = folder / f"{name}.json"
        self.paths = [folder / f"{name}-{turn}.bin" for turn in (0, 1)]
        self.shape = shape
        self.layer = 0
        if self.state_path.exists():
            self.layer = int(files.read_json(self.state_path)["layer"])
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
        """Delete the files; the stream cannot be used any more."""
        self.files = []
        for path in [*self.paths, self.state_path]:
            path.unlink(missing_ok=True)
