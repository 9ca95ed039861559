"""The shape of the dense parent, for a plan: known before anything of it is there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moesaic.errors import InputError
from moesaic.flow import current
from moesaic.model import dense
from moesaic.schema import Config


def shape(config: Config) -> Any:
    """The dense parent's configuration: from the shape in the configuration, the finished `dense` step, its folder or GGUF file (a package is fetched), or the hub.

    Raises:
        InputError: none of them is there, or the parent is not supported.
    """
    from transformers import AutoConfig

    at = config.model.at
    dtype = getattr(torch, config.model.dtype)  # the dense step writes it so, whatever the checkpoint has
    if config.model.shape is not None:
        return _shaped(config.model.shape, dtype)
    if (done := current.shared(config, "dense")) is not None:
        return AutoConfig.from_pretrained(str(done.folder / "model"), local_files_only=True, dtype=dtype)
    if at.kind in ("folder", "gguf") and not Path(at.path).exists():
        raise InputError(
            "model: the parent's shape is not known yet; run the dense step first (snakemake results/dense/manifest.json), or give model.shape"
        )
    found = dense.parent_config(at.model_dump())
    found.dtype = dtype
    return found


def _shaped(shape: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """model.shape as a configuration of transformers. Raises InputError: a value that it refuses."""
    from transformers import LlamaConfig

    # YAML 1.1 takes 1e-05, as config.json has it, for text
    given = {key: _number(value) for key, value in shape.items() if key not in ("dtype", "torch_dtype")}
    try:
        return LlamaConfig(**given, dtype=dtype)
    except Exception as error:  # transformers' own kinds of errors differ between its versions
        reason = " ".join(str(error).split())
        raise InputError(
            f"model.shape: transformers refuses it ({reason}); give fields of the parent's config.json"
        ) from error


def _number(value: Any) -> Any:
    """A float that is written as text; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
