"""Put an adapter on a model, count it, take it off, save and load it in peft's file format.

A saved adapter is `adapter_model.safetensors` and `adapter_config.json` with the names that peft gives a LoRA, so plain peft loads the text
half as an ordinary LoRA (and warns of the settings it does not know): without images it computes the same. The image half, the grids and
the trained embeddings of the image tokens come back through `load`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.model.adapters import lateral
from moesaic.model.adapters.lateral import Adapted, ByModality, Shared
from moesaic.model.adapters.layout import ImageTokens
from moesaic.model.adapters.options import Options
from moesaic.model.adapters.sequence import Sequences

WEIGHTS, CONFIG, ROWS = "adapter_model.safetensors", "adapter_config.json", "image_embeddings.safetensors"
OWN = "moesaic"
"""Our section of adapter_config.json."""


def attach(model: Any, options: Options, tokens: ImageTokens | None = None) -> list[Adapted]:
    """Wrap the attention projections of every decoder layer; everything else is frozen. Returns the adapted layers, in order.

    Args:
        tokens: which ids are images; needed by the methods that route by modality.

    Raises:
        InputError: an adapter is on already, the method is unknown, or the model has no such projection.
    """
    if adapted(model):
        raise InputError("adapter: the model has one already; take it off first (detach)")
    if options.method not in lateral.METHODS:
        raise InputError(
            f"adapter.method: no method '{options.method}'; allowed: {', '.join(lateral.METHODS)}"
        )
    make = lateral.METHODS[options.method]
    routes = options.method in ("lateral", "two-linear")
    if routes and tokens is None:
        raise InputError(f"adapter.method: {options.method} needs to know the image tokens; see data.images")
    sequences = Sequences(
        tokens or ImageTokens(0, 0, -1, {-1: (1, 1)}), options.size if options.method == "lateral" else 1, options.causal
    )  # fmt: skip
    model.requires_grad_(False)
    layers: list[Adapted] = []
    for attention in _attentions(model, options):
        for name in options.targets:
            layer = make(getattr(attention, name), options, sequences)
            layer.number = len(layers)
            setattr(attention, name, layer)
            layers.append(layer)
    if not layers:
        raise InputError(
            f"adapter.targets: the model has no attention with {', '.join(options.targets)}; other architectures are not supported"
        )
    if routes:
        sequences.watch(model.base_model)
    return layers


def detach(model: Any) -> None:
    """Take the adapter off: the model is as it was before `attach`, but frozen."""
    for parent, name, layer in list(_places(model)):
        layer.sequences.unwatch()
        setattr(parent, name, layer.base_layer)


def adapted(model: nn.Module) -> list[Adapted]:
    """The adapted layers, in order."""
    return [module for module in model.modules() if isinstance(module, Adapted)]


def count(model: nn.Module) -> int:
    """Learned numbers of the adapter (embeddings of image tokens not counted)."""
    return sum(p.numel() for layer in adapted(model) for p in layer.learned())


def planned(model: Any, options: Options) -> int:
    """The same by formula, before anything is attached."""
    return sum(
        lateral.parameters(options, getattr(part, name).in_features, getattr(part, name).out_features)
        for part in _attentions(model, options)
        for name in options.targets
    )


def equal_budget(model: Any, options: Options, budget: int) -> Options:
    """The settings at the rank whose parameter count comes closest to a budget.

    Raises:
        InputError: no rank comes within 5 % of it.
    """
    found = min(
        (options.with_rank(rank) for rank in range(1, 513)), key=lambda o: abs(planned(model, o) - budget)
    )
    if abs(planned(model, found) - budget) > 0.05 * budget:
        raise InputError(
            f"adapter: no rank of {options.method} has within 5 % of {budget} parameters (closest {planned(model, found)} at rank {found.rank}); "
            "take a larger rank for the method that sets the budget"
        )
    return found


def train_rows(model: Any, tokens: ImageTokens) -> Any:
    """Let the embeddings of image tokens (and their rows of an untied head) learn, and no other row; returns the hooks' handles.

    The other rows get a gradient of zero: with a weight decay of zero for embeddings, an Adam step leaves them bit for bit.
    """
    rows = row_ids(tokens)
    handles = []
    for weight in _embeddings(model).values():
        weight.requires_grad_(True)
        keep = torch.zeros(len(weight), 1, device=weight.device, dtype=weight.dtype)
        keep[rows] = 1.0
        handles.append(weight.register_hook(lambda grad, keep=keep: grad * keep.to(grad.device)))
    return handles


def row_ids(tokens: ImageTokens) -> list[int]:
    """All ids that belong to images: codes, begin tokens, the end token."""
    return sorted({*range(tokens.first, tokens.first + tokens.codes), *tokens.grids, tokens.end})


def save(model: Any, folder: Path, base: str | None = None) -> None:
    """Write the adapter into a folder.

    Args:
        base: name or path of the model that it belongs to, for peft's `base_model_name_or_path`.
    """
    from safetensors.torch import save_file

    layers = adapted(model)
    if not layers:
        raise InputError("adapter: the model has none to save")
    options, tokens = layers[0].options, layers[0].sequences.tokens
    routes = isinstance(layers[0], ByModality)
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(folder / WEIGHTS) as temporary:
        save_file(state(model), str(temporary), {"format": "pt"})
    if routes:
        rows = row_ids(tokens)
        kept = {name: weight.detach()[rows].cpu().contiguous() for name, weight in _embeddings(model).items()}
        with files.atomic_path(folder / ROWS) as temporary:
            save_file(kept, str(temporary), {"format": "pt"})
    peft = {
        # a mixture is no LoRA that peft could run: let it refuse
        "peft_type": "MOESAIC_EXPERTS" if options.method == "moe-lora" else "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(options.targets),
        "inference_mode": True,
        OWN: {"options": options.as_json(), "tokens": tokens.as_json() if routes else None},
    }
    files.write_json(folder / CONFIG, peft)


def load(model: Any, folder: Path) -> list[Adapted]:
    """Attach a saved adapter and fill it; the image tokens' embeddings too.

    Raises:
        InputError: no adapter of ours in the folder, missing or unknown weights, another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"{path}: not there; give the folder of a saved adapter")
    own = json.loads(path.read_text(encoding="utf-8")).get(OWN)
    if own is None:
        raise InputError(f"{path}: has no section '{OWN}'; an adapter of plain peft is loaded with peft")
    tokens = ImageTokens.from_json(own["tokens"]) if own["tokens"] else None
    layers = attach(model, Options(**own["options"]), tokens)
    try:
        found = load_file(str(folder / WEIGHTS))
        rows = load_file(str(folder / ROWS)) if tokens else {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder}: damaged or missing adapter weights ({error}); save it again") from error
    fill(model, found)
    embeddings = _embeddings(model) if tokens else {}
    if embeddings.keys() != rows.keys():
        raise InputError(
            f"{folder / ROWS}: has {sorted(rows)}, the model needs {sorted(embeddings)}; this is another model"
        )
    for name, weight in embeddings.items():
        assert tokens is not None
        ids = row_ids(tokens)
        if max(ids) >= len(weight) or rows[name].shape[1:] != weight.shape[1:]:
            raise InputError(
                f"{folder / ROWS}: image tokens up to {max(ids)} of width {rows[name].shape[1]}, the model has {tuple(weight.shape)}; extend its vocabulary "
                "as it was when the adapter was trained"
            )
        with torch.no_grad():
            weight[ids] = rows[name].to(weight)
    return layers


def state(model: Any) -> dict[str, Tensor]:
    """The adapter's tensors under peft's names."""
    found: dict[str, Tensor] = {}
    for path, layer in _named(model):
        for name, parameter in layer.named_parameters():
            if name.startswith("lora_"):
                found[f"base_model.model.{path}.{name}"] = parameter.detach().cpu().contiguous()
    return found


def fill(model: Any, found: Mapping[str, Tensor]) -> None:
    """The reverse of `state`. Raises InputError when a tensor is missing, unknown or of another shape."""
    wanted = {
        f"base_model.model.{path}.{name}": parameter
        for path, layer in _named(model)
        for name, parameter in layer.named_parameters()
        if name.startswith("lora_")
    }
    wrong = sorted(wanted.keys() ^ found.keys()) or sorted(
        name for name, value in wanted.items() if value.shape != found[name].shape
    )
    if wrong:
        raise InputError(
            f"adapter weights do not fit the model, first: {wrong[0]} ({len(wrong)} in all); they belong to another one"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])


def merge(model: Any) -> None:
    """Fold a shared linear LoRA into the weights, W <- W + (a / r) B A, and take it off.

    Raises:
        InputError: for every other method: its update is another one for each kind of token, so no single matrix is equal to it.
    """
    layers = adapted(model)
    if not layers:
        raise InputError("adapter: the model has none to merge")
    for layer in layers:
        if not isinstance(layer, Shared):
            raise InputError(
                f"adapter: {layer.options.method} cannot be merged: each layer has one update for text and another for images (or one per expert), and a "
                "single matrix can hold only one; keep the adapter beside the model and load it with moesaic.model.adapters.attach.load"
            )
    with torch.no_grad():
        for layer in layers:
            assert isinstance(layer, Shared)
            weight = layer.base_layer.weight
            weight += (layer.lora_B.weight @ layer.lora_A.weight * layer.scaling).to(weight)
    detach(model)


def _attentions(model: nn.Module, options: Options) -> Iterator[nn.Module]:
    """The attention modules of the decoder layers: those that have all the wanted projections and a place in the cache."""
    for module in model.modules():
        if hasattr(module, "layer_idx") and all(
            isinstance(getattr(module, name, None), nn.Linear | Adapted) for name in options.targets
        ):
            yield module


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, Adapted]]:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, Adapted):
                yield module, name, child


def _named(model: nn.Module) -> list[tuple[str, Adapted]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Adapted)]


def _embeddings(model: Any) -> dict[str, nn.Parameter]:
    """`input`, and `output` unless the two are one."""
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return {"input": inputs} if inputs is outputs else {"input": inputs, "output": outputs}
