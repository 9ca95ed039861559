"""Dynamic layer operations (DLO, arXiv 2407.11030): more decoder layers (`expand`), FFNs that run for some tokens only (`skip`), and back (`fold`).

The order of a stage: `prepare` changes a loaded model as the configuration says; `steer.Steering` trains its routers; `save` and `load` keep it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import InputError
from moesaic.model.depth import expand, fold, skip, static, steer
from moesaic.model.depth.saved import load, save

__all__ = ["METHODS", "eligible", "expand", "facts", "fold", "load", "prepare", "save", "shares"]

Text = Callable[[int], Iterable[tuple[Tensor, Tensor | None]]]
"""Number of rows -> batches of token ids [B, T] and masks, for what is chosen by looking at text."""


def route(model: Any, layers: list[int], settings: Mapping[str, Any], text: Text) -> None:
    """`route`: a router per layer decides token by token; it is trained with the stage (DLO, arXiv 2407.11030)."""
    options = {name: settings[name] for name in ("threshold", "gate", "normed", "bias", "detach")}
    skip.attach(model, layers, **options)
    budgets = [steer.annealed(0, settings["capacity"], settings["anneal"])] * len(layers)
    steer.Steering(model, settings).set_budgets(budgets)


def prune(model: Any, layers: list[int], settings: Mapping[str, Any], text: Text) -> None:
    """`static`: the least influential layers, or their FFNs, are left out for all tokens (ShortGPT, arXiv 2403.03853)."""
    if torch.cuda.is_available():
        model.to("cuda")
    found = static.influence(model, text(settings["calibration"]), settings["unit"])
    static.prune(model, static.choose(found, layers, settings["capacity"]), settings["unit"])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


METHODS: dict[str, Callable[[Any, list[int], Mapping[str, Any], Text], None]] = {
    "route": route,
    "static": prune,
}


def prepare(model: Any, settings: Mapping[str, Any], text: Text) -> None:
    """Change a loaded model as the configuration says, in place, before an engine gets it.

    Args:
        settings: schema.Depth as a dict. text: rows of the stage's training data.

    Raises:
        InputError: layers that do not exist, a model that skips already.
    """
    if settings["expand"] is not None:
        expand.expand(model, settings["expand"])
    if settings["skip"] is not None:
        own = settings["skip"]
        METHODS[own["method"]](model, eligible(model, own), own, text)
    steer.freeze(model, settings["train"])


def eligible(model: Any, settings: Mapping[str, Any]) -> list[int]:
    """The layers that may skip.

    Args:
        settings: schema.Skip as a dict.

    Raises:
        InputError: there are none, or a named one does not exist, or the model skips already.
    """
    if skip.layers(model):
        raise InputError("tune.depth.skip: this model skips already; start from one that does not")
    count = model.config.num_hidden_layers
    named = settings["layers"]
    if named == "all":
        found = list(range(count))
    elif named == "inserted":
        found = list(getattr(model.config, "inserted_layers", None) or [])
    else:
        found = sorted(set(named))
        if found and found[-1] >= count:
            raise InputError(
                f"tune.depth.skip.layers: {found[-1]} does not exist, the model has the layers 0 to {count - 1}"
            )
    last = count - settings["spare_last"]
    found = [index for index in found if settings["spare_first"] <= index < last]
    if not found:
        raise InputError("tune.depth.skip: no layer may skip; see layers, spare_first and spare_last")
    return found


def facts(model: Any) -> dict[str, Any]:
    """What a manifest says of a model's depth; empty for a model as it came."""
    found: dict[str, Any] = {}
    inserted = getattr(model.config, "inserted_layers", None)
    if inserted:
        found["inserted"] = list(inserted)
    skips = skip.layers(model)
    if skips:
        found["off"] = [index for index, item in skips.items() if item.router is None]
        found["routed"] = list(skip.routed(model))
        found["share"] = {
            str(index): None if item.share is None else round(item.share, 6) for index, item in skips.items()
        }
    return found


def shares(model: Any) -> dict[int, float]:
    """Share of the tokens for which a skipping layer's FFN runs, where it was measured."""
    return {index: item.share for index, item in skip.layers(model).items() if item.share is not None}
