"""An adapter that lies beside the model of a finished step: `adapter/` next to `model/`."""

from pathlib import Path
from typing import Any

from moesaic.errors import InputError
from moesaic.flow import manifest
from moesaic.flow.manifest import Manifest
from moesaic.model.adapters import attach

FOLDER = "adapter"
KERNELS = "kernels.png"
"""In it: what the channels of a convolution look like."""


def needed(step: Manifest) -> bool:
    """True when a step's model is only whole with the adapter beside it (a shared linear one is folded into the model)."""
    facts = step.metrics.get("adapter")
    return facts is not None and not facts["merged"]


def put_on(model: Any, step: Manifest) -> None:
    """Put a finished step's adapter on its model, where the model needs it; its files are checked."""
    if needed(step):
        manifest.verify(step, only=[f"{FOLDER}/"])
        attach.load(model, step.folder / FOLDER)


def refuse_half(folder: Path, target: str) -> None:
    """Refuse to write a model without its adapter. Args: folder: of the model. target: what has no place for the adapter. Raises InputError."""
    step = folder.parent / manifest.NAME
    if (folder / FOLDER).exists() or (step.exists() and needed(manifest.read(step))):
        raise InputError(
            f"{folder}: this model is only whole with its adapter, for which {target} has no place; tune with adapter.method: shared-linear, or without an adapter"
        )


def refuse(step: Manifest) -> None:
    """No stage can go on from a model that is only half of what was trained. Raises InputError."""
    if needed(step):
        raise InputError(
            f"{step.folder}: its adapter ({step.metrics['adapter']['method']}) cannot be folded into the model, so no stage can go on from it; "
            "end stages with tune, or set tune.adapter.method: shared-linear"
        )
