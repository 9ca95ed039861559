"""Skipping models on disk. No class of transformers can express them, and one that ignored the routers would run every FFN without a word; so config.json has a
model_type of ours, which plain transformers refuses, and `load` (used by every stage, and by `moesaic.model.load.load_model`) knows.

    config.json         the standard architecture's, with model_type moesaic_depth and a `depth` section
    model.safetensors   the standard architecture's weights, under their standard names
    depth.safetensors   routers and budgets, by layer

    from pathlib import Path
    from moesaic.model import depth
    model = depth.load(Path("results/dlo/tune/model"))   # a LlamaForCausalLM (MixtralForCausalLM, ...) whose layers skip; generate() works
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moesaic.errors import InputError
from moesaic.model.depth import skip

MODEL_TYPE = "moesaic_depth"
WEIGHTS = "depth.safetensors"


def save(model: Any, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a model, skipping or standard, into a folder.

    Args:
        state: whole tensors by name, where the model's own are cut up over ranks; None takes the model's.
    """
    found = skip.layers(model)
    everything = dict(model.state_dict() if state is None else state)
    own = {name for name in everything if ".depth_router." in name}
    model.save_pretrained(
        folder, state_dict={name: value for name, value in everything.items() if name not in own}
    )
    if not found:
        return
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    routed = skip.routed(model)
    section: dict[str, Any] = {
        "model_type": raw["model_type"],
        "routed": list(routed),
        "off": [index for index in found if index not in routed],
        "share": {str(index): item.share for index, item in found.items()},
    }
    for item in list(routed.values())[:1]:
        router: Any = item.router
        section |= {"threshold": item.threshold, "gate": item.gate, "normed": router.normed}
        section |= {"bias": router.bias is not None, "detach": router.detach}
    path.write_text(
        json.dumps(raw | {"model_type": MODEL_TYPE, "depth": section}, indent=2) + "\n", encoding="utf-8"
    )
    tensors = {name: everything[name].detach().cpu().contiguous() for name in sorted(own)}
    save_file(tensors, folder / WEIGHTS)


def load(folder: Path, key: str = "model", dtype: Any = "auto") -> Any:
    """A skipping model (or a standard one) from a folder. Raises InputError as load.load_model does."""
    from moesaic.model.load import load_model

    return load_model(folder, key, dtype)


def standard_config(raw: Mapping[str, Any]) -> Any:
    """The configuration of the standard architecture below, from config.json as a dict."""
    from transformers import AutoConfig

    kept = {name: value for name, value in raw.items() if name not in ("model_type", "depth")}
    return AutoConfig.for_model(raw["depth"]["model_type"], **kept)


def restore(model: Any, raw: Mapping[str, Any], folder: Path, key: str) -> None:
    """Give a standard model its routers back.

    Raises:
        InputError: depth.safetensors is missing, damaged, or of other layers.
    """
    section = dict(raw["depth"])
    options = {
        name: section[name] for name in ("threshold", "gate", "normed", "bias", "detach") if name in section
    }
    found = skip.attach(model, section["routed"], section["off"], **options)
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{key}: the depth routers in {path} are missing or damaged ({error}); make or fetch the model again"
        ) from error
    wanted = {name: value for name, value in model.state_dict().items() if ".depth_router." in name}
    if set(wanted) != set(tensors):
        wrong = sorted(set(wanted) ^ set(tensors))
        raise InputError(
            f"{key}: {path} does not fit config.json, first: {wrong[0]}; make or fetch the model again"
        )
    for name, value in wanted.items():
        value.copy_(tensors[name])
    for index, item in found.items():
        item.share = section["share"][str(index)]
