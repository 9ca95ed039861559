"""Which backend runs a model's experts: transformers' own, or `sorted_experts` on a CPU.

All of them compute the same function; a checkpoint does not know which one made it, and a saved configuration holds none. What was measured:
docs/methods/training.md.
"""

import logging
from functools import cache
from typing import Any

import torch

from moesaic.errors import InputError
from moesaic.model import compiled_loops, sorted_experts

log = logging.getLogger("moesaic.model")

AUTO = {"cpu": sorted_experts.COMPILED, "cuda": "grouped_mm"}
"""Fastest measured backend of each type of device; on a CPU without a C++ compiler the same without compiled loops."""


def register() -> None:
    """Tell transformers about our backends; once in a process, or again."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(sorted_experts.NAME, sorted_experts.forward)
    ALL_EXPERTS_FUNCTIONS.register(sorted_experts.COMPILED, sorted_experts.compiled_forward)


def choose(wanted: str, device: torch.device) -> str:
    """Name of the backend for a device. Args: wanted: auto, or a name in transformers' interface.

    Raises:
        InputError: one that the device cannot run, or not in any useful time.
    """
    if wanted == "auto":
        found = AUTO.get(device.type, "grouped_mm")
        return sorted_experts.NAME if found == sorted_experts.COMPILED and not _compiled() else found
    if wanted == "batched_mm" and device.type == "cpu":
        raise InputError(
            "engine.experts: batched_mm copies an expert's weights for every token and is about 30 times slower than a dense FFN on a CPU; "
            "use auto, sorted, grouped_mm or eager"
        )
    if wanted == "sonicmoe" and device.type != "cuda":
        raise InputError(f"engine.experts: sonicmoe needs a CUDA device, this is {device.type}; use auto")
    if wanted == sorted_experts.COMPILED and device.type != "cpu":
        raise InputError(f"engine.experts: {wanted} is for a CPU, this is {device.type}; use auto")
    return wanted


@cache
def _compiled() -> bool:
    """Whether the loops are compiled here, or can be."""
    if not compiled_loops.at_hand():
        return False
    try:
        compiled_loops.loops()
    except InputError as error:  # told once, and again by the next process
        log.warning("experts run without compiled loops (engine.experts: auto): %s", error)
        return False
    return True


def apply(model: Any, wanted: str, device: torch.device, level: int = logging.INFO) -> str | None:
    """Set a model's backend and log it; the name, None for a model without experts. Args: level: of the log's line."""
    from moesaic.model import families

    if not families.is_moe(model):
        return None
    name = choose(wanted, device)
    register()
    if name == sorted_experts.COMPILED:
        compiled_loops.loops()  # before the first step, not in it
    if model.config._experts_implementation != name:
        model.set_experts_implementation(name)
    log.log(level, "experts run by %s on %s (engine.experts: %s)", name, device.type, wanted)
    return name
