"""A boolean matrix, 8 entries to the byte: which neuron is active on which token.

Shapes: T tokens, F neurons.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHARD = 4096
"""Tokens that are unpacked at a time."""


@dataclass(frozen=True)
class Bits:
    """Packed along the neurons; shards of tokens are unpacked on demand."""

    packed_TF: np.ndarray
    """uint8 [T, ceil(F / 8)]."""
    width: int
    """F."""

    @classmethod
    def of(cls, values_TF: np.ndarray) -> "Bits":
        """Pack a boolean matrix."""
        return cls(np.packbits(values_TF, axis=1), values_TF.shape[1])

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.packed_TF)

    def shards(self) -> Iterator[np.ndarray]:
        """Boolean [at most SHARD, F], in order."""
        for start in range(0, self.tokens, SHARD):
            yield np.unpackbits(self.packed_TF[start : start + SHARD], axis=1, count=self.width).astype(bool)

    def unpack(self) -> np.ndarray:
        """Boolean [T, F]."""
        return np.concatenate(list(self.shards()))

    def columns(self, chosen: np.ndarray) -> "Bits":
        """Some of the neurons, in the given order."""
        parts = [np.packbits(shard[:, chosen], axis=1) for shard in self.shards()]
        return Bits(np.concatenate(parts), len(chosen))
