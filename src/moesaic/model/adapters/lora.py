"""Plain LoRA by peft: on the attention projections, and on the experts' own weights, which are parameters of three axes and no linear layers.

W <- W + (alpha / r) B A (Hu et al., arXiv 2106.09685, eq. 3); an expert has an A and a B of its own. What was learned is folded into the model at
the end, so later stages go on from a standard model; the adapter is saved as peft does it.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from moesaic.errors import InputError
from moesaic.model import families

METHOD = "lora"


def attach(model: Any, rank: int, alpha: float, targets: Sequence[str], expert_rank: int | None) -> None:
    """Put the LoRA on a model; all else is frozen.

    Args:
        expert_rank: rank on each routed expert's weights; None: they stay as they are. Their update has the same scale, alpha / rank.

    Raises:
        InputError: peft is not installed, no such projection, or experts are wanted of a model without any.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import cast_adapter_dtype
    except ImportError as error:
        raise InputError("adapter.method: lora needs peft; pip install -e '.[lora]' in the clone") from error
    experts = [part.experts for part in families.parts(model)]
    if expert_rank and not experts:
        raise InputError("adapter.expert_rank: this model has no experts; leave it null")
    found = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    missing = sorted(set(targets) - found)
    if missing:
        raise InputError(
            f"adapter.targets: the model has no {', '.join(missing)}; it has {', '.join(sorted(found))}"
        )
    names = {id(p): name for name, p in model.named_parameters()}
    wanted = (
        [names[id(p)] for module in experts for p in module.parameters() if p.ndim == 3]
        if expert_rank
        else []
    )
    scaled = alpha * (expert_rank or 0) / rank
    own: dict[str, Any] = {  # peft's own types say int where it takes any number
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(name): expert_rank for name in wanted},
        "alpha_pattern": {re.escape(name): scaled for name in wanted},
    }
    config = LoraConfig(
        target_modules=list(targets), target_parameters=wanted or None, task_type="CAUSAL_LM", **own
    )
    inject_adapter_in_model(config, model)
    cast_adapter_dtype(model, "default")  # float32 on a bfloat16 model: small updates would be lost
    model.peft_config = {"default": config}


def layers(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """(parent, name, outermost tuner layer) of everything that is adapted."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [
        (parent, name, child)
        for parent in model.modules()
        if not isinstance(parent, BaseTunerLayer)
        for name, child in parent.named_children()
        if isinstance(child, BaseTunerLayer)
    ]


def attached(model: nn.Module) -> bool:
    """True for a model with a LoRA of peft on it."""
    return any(".lora_A.default." in name for name, _ in model.named_parameters())


def count(model: nn.Module) -> int:
    """Learned numbers."""
    return sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)


def save(model: Any, folder: Path, base: str) -> None:
    """Write the adapter for `peft.PeftModel.from_pretrained`. Args: base: the model that it belongs to."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    save_file(tensors, str(folder / "adapter_model.safetensors"), {"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))


def merge(model: Any) -> None:
    """Fold it into the weights and take it off; the model is of its own classes again, and frozen."""
    for parent, name, layer in layers(model):
        for tuner in _nested(layer):
            tuner.merge()
        setattr(parent, name, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(False)


def _nested(layer: Any) -> Iterator[Any]:
    """The tuner layers around one module, from the outside."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    while isinstance(layer, BaseTunerLayer):
        yield layer
        layer = getattr(layer, "base_layer", None)
