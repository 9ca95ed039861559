"""Tuning by an adapter instead of all weights: put it on before an engine gets the model, save it beside the model at the end."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.data.images import vocabulary
from moesaic.flow import files
from moesaic.flow.manifest import Manifest
from moesaic.model import load, size
from moesaic.model.adapters import attach, beside, lora, pictures
from moesaic.model.adapters.lateral import Lateral, Shared
from moesaic.model.adapters.layout import ImageTokens
from moesaic.model.adapters.options import Options
from moesaic.train.job import Job

KERNEL_LAYERS, KERNEL_CHANNELS = 8, 8
"""In the picture of an adapter's kernels."""


@dataclass(frozen=True)
class Finished:
    """What is left to save when the adapter is."""

    state: dict[str, Tensor]
    """The model's weights under their own names."""
    size: size.Size
    facts: dict[str, Any]
    """For the manifest: method, rank, parameters, merged."""


def image_tokens(step: Manifest) -> ImageTokens | None:
    """The image tokens of a finished step's tokenizer; None for a model of text alone."""
    return vocabulary.of(load.load_tokenizer(step.folder / "model"))


def begin(model: Any, settings: Mapping[str, Any], tokens: ImageTokens | None, seed: int) -> None:
    """Attach the configured adapter; besides it only the embeddings of image tokens learn, unless they are frozen.

    Args:
        settings: schema.Tune as a dict, with `adapter`.

    Raises:
        InputError: a method that tells text from images, for a model without image tokens; no rank fits the budget.
    """
    torch.manual_seed(seed)
    _attach(model, dict(settings["adapter"]), tokens)
    pictured = settings["adapter"]["method"] != lora.METHOD
    if pictured and tokens is not None and not settings["optimizer"]["freeze_embeddings"]:
        attach.train_rows(model, tokens)


def planned(model: Any, adapter: Mapping[str, Any]) -> Any:
    """A copy with the adapter on it, to be counted; the embeddings of image tokens are not among what learns. Args: model: may be on the meta device. adapter: schema.Adapter as a dict."""
    found = copy.deepcopy(model)
    _attach(found, dict(adapter), ImageTokens(0, 0, -1, {-1: (1, 1)}))
    return found


def _attach(model: Any, own: dict[str, Any], tokens: ImageTokens | None) -> None:
    if own["method"] == lora.METHOD:
        lora.attach(model, own["rank"], own["alpha"], own["targets"], own["expert_rank"])
        return
    budget = own.pop("budget")
    own.pop("expert_rank")
    options = Options(**own)
    attach.attach(model, attach.equal_budget(model, options, budget) if budget else options, tokens)


def finish(model: Any, state: Mapping[str, Tensor], job: Job) -> Finished | None:
    """Write `adapter/`, fold what can be folded into the model and take any other one off; None without an adapter.

    Args:
        state: the model's weights by name, the adapter's among them; the torch engine's are the model's own, so a fold shows in them.
    """
    if lora.attached(model):
        return _fold(model, state, job)
    layers = attach.adapted(model)
    if not layers:
        return None
    merged = isinstance(layers[0], Shared)
    counted = size.count(model)
    facts = {
        "method": layers[0].options.method,
        "rank": layers[0].options.rank,
        "parameters": attach.count(model),
        "merged": merged,
    }
    # a folded one belongs to the model that the stage began with
    base = job.tokenizer_from if merged else job.context.out / "model"
    with files.atomic_path(job.context.out / beside.FOLDER) as folder:
        attach.save(model, folder, base.as_posix())
        _draw(model, folder / beside.KERNELS)
    if merged:
        attach.merge(model)
        counted = size.count(model)
    else:
        attach.detach(model)
    kept = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    return Finished(
        {name.replace(".base_layer.", "."): tensor for name, tensor in kept.items()}, counted, facts
    )


@torch.no_grad()
def _draw(model: Any, path: Path) -> None:
    """Picture of the kernels between the factors: the first channels of eight layers, from the first to the last; nothing for other methods."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, Lateral)]
    if not layers:
        return
    count = min(KERNEL_LAYERS, len(layers))
    chosen = [layers[i * (len(layers) - 1) // max(1, count - 1)] for i in range(count)]
    banks = [layer.lora_image_kernel.drawn()[:KERNEL_CHANNELS] for _, layer in chosen]
    titles = [
        f"{name.removeprefix('model.layers.').replace('.self_attn.', ' ')} {channel}"
        for (name, _), bank in zip(chosen, banks, strict=True)
        for channel in range(len(bank))
    ]
    figure = pictures.kernels(torch.cat(banks), titles, columns=max(len(bank) for bank in banks))
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def _fold(model: Any, state: Mapping[str, Tensor], job: Job) -> Finished:
    """Write `adapter/` as peft does, and fold it into the model."""
    own = job.settings["adapter"]
    facts = {
        "method": lora.METHOD,
        "rank": own["rank"],
        "expert_rank": own["expert_rank"],
        "parameters": lora.count(model),
        "merged": True,
    }
    with files.atomic_path(job.context.out / beside.FOLDER) as folder:
        lora.save(model, folder, job.tokenizer_from.as_posix())
    lora.merge(model)
    names = {name.replace(".base_layer", "") for name in state if ".lora_" not in name}
    folded = model.state_dict()
    return Finished({name: folded[name].detach().cpu() for name in names}, size.count(model), facts)
