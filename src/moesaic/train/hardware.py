"""What the device could do at most, for the model FLOPs utilisation."""

import time

import torch

DENSE_BF16_TFLOPS = {
    "A100": 312.0,
    "H100": 989.0,
    "H200": 989.0,
    "L40S": 362.0,
    "A10": 125.0,
    "V100": 125.0,
    "B200": 2250.0,
}
"""Peak of NVIDIA data sheets, dense bfloat16 (V100: float16)."""


def peak_flops(device: torch.device) -> float | None:
    """Floating-point operations per second of one rank's device; a matrix product is timed on a CPU; None for unknown GPUs."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak * 1e12 for key, peak in DENSE_BF16_TFLOPS.items() if key in name), None)
    size = 768
    a = torch.ones(size, size)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def memory_gb() -> float:
    """Memory in use by this process, GB: device memory at its peak on a GPU, resident memory on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resident_gb()


def resident_gb() -> float:
    """Resident memory of this process, GB."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e9
