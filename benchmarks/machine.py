"""What a benchmark ran on and how its repetitions spread, as its JSON tells it."""

import statistics
from collections.abc import Sequence

import torch


def name() -> str:
    """Of the GPU that torch takes; `cpu` without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def spread(values: Sequence[float]) -> list[float]:
    """Median, lowest, highest."""
    return [statistics.median(values), min(values), max(values)]
