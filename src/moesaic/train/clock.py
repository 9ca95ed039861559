"""Where the time of a step goes."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Clock:
    """Seconds by phase; on a GPU each phase ends when its kernels have run, so that none is charged to the next."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """`seconds/{phase}` since the last call."""
        found = {f"seconds/{name}": value for name, value in self.seconds.items()}
        self.seconds = {}
        return found
