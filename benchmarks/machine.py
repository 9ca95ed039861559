"""What a benchmark ran on, as its JSON tells it."""

import torch


def name() -> str:
    """Of the GPU that torch takes; `cpu` without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
