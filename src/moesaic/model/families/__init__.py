"""Which standard transformers architecture an MoE is written as, and how to find its parts by type.

Shapes: D model width, E routed experts, K experts per token, M neurons per expert, S shared neurons, T tokens.

Each family is one file; all of them compute exactly what a LLaMA block with a split FFN does (tests/model/test_families.py).
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.model.families import glm4_moe, granite_moe_shared, mixtral, qwen2_moe
from moesaic.model.families.base import Family, Parts, Shape, chosen_weights

__all__ = [
    "FACTORS",
    "FAMILIES",
    "PARENTS",
    "PIECES",
    "Family",
    "Parts",
    "Routing",
    "Shape",
    "build",
    "check_architecture",
    "check_parent",
    "choose",
    "chosen_weights",
    "is_moe",
    "of",
    "parts",
    "set_per_token",
]

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (mixtral, granite_moe_shared, qwen2_moe, glm4_moe)
}
"""In order of preference."""

FACTORS = "moesaic_factors"
"""Where a model's configuration says by what the routed output of each layer with experts is multiplied, which `moesaic merge` divides by."""

PIECES = "moesaic_copy_pieces"
"""Where it says, of a split of copies, how many experts make up one FFN."""

PARENTS = ("llama", "mistral")
"""model_type of the dense parents that the MoE families represent exactly."""


def check_architecture(model_type: str | None) -> None:
    """Refuse a dense parent by its model_type alone. Raises InputError."""
    if model_type not in PARENTS:
        raise InputError(
            f"model.at: architecture {model_type} is not supported; supported: {', '.join(PARENTS)}"
        )


def check_parent(config: Any) -> None:
    """Refuse a dense parent that no MoE family can represent. Raises InputError naming what is in the way."""
    check_architecture(config.model_type)
    if getattr(config, "sliding_window", None):
        raise InputError(
            "model.at: sliding-window attention (config.json: sliding_window) has no counterpart in the MoE families; use a checkpoint without it"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise InputError(
            f"model.at: activation {config.hidden_act} (config.json: hidden_act) is not supported; experts are fitted for silu, as LLaMA has it"
        )
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            raise InputError(
                f"model.at: biases in the blocks (config.json: {key}) have no counterpart in the MoE families"
            )


def choose(shape: Shape, dense: Any, wanted: str = "auto") -> tuple[Family, dict[str, str]]:
    """The family that an MoE is written as, and one line on each family: why it was chosen, or why not.

    Raises:
        InputError: no family, or not the wanted one, can express the shape.
    """
    reasons: dict[str, str] = {}
    chosen: Family | None = None
    careful = sorted(FAMILIES.values(), key=lambda item: item.caution(dense) is not None)
    for family in careful:
        refused = family.refuse(shape, dense)
        if refused is not None:
            reasons[family.name] = f"no: {refused}"
        elif wanted not in ("auto", family.name):
            reasons[family.name] = f"possible: {family.about}"
        elif chosen is None:
            chosen = family
            reasons[family.name] = f"chosen: {family.about}"
            if (known := family.caution(dense)) is not None:
                reasons[family.name] += f"; but {known}"
        else:
            reasons[family.name] = f"possible: {family.about}"
    if chosen is None:
        if wanted != "auto":
            raise InputError(f"experts.family: {wanted} cannot express this split: {reasons[wanted][4:]}")
        listed = "; ".join(f"{name}: {reason[4:]}" for name, reason in reasons.items())
        raise InputError(f"experts: no architecture in transformers expresses this split ({listed})")
    return chosen, reasons


def build(family: Family, dense: Any, shape: Shape) -> Any:
    """An MoE model of a shape, with weights that the caller fills; of no memory under `torch.device('meta')`."""
    model = family.model()(family.config(dense, shape))
    return model.to(dense.dtype)


def of(model: Any) -> Family | None:
    """The family of a model; None for a dense one."""
    return FAMILIES.get(model.config.model_type)


def is_moe(model: Any) -> bool:
    """True for a model of one of the MoE families."""
    return of(model) is not None


def parts(model: nn.Module) -> Iterator[Parts]:
    """The MoE layers of a model, found by module type, in order of depth; nothing for a dense model."""
    for family in FAMILIES.values():
        found = 0
        for module in model.modules():
            block = family.block(module)
            if block is not None:
                found += 1
                yield Parts(module.self_attn.layer_idx, *block, family)  # type: ignore[union-attr, arg-type]
        if found:
            return


def set_per_token(model: Any, per_token: int) -> None:
    """Run another number of routed experts per token from now on."""
    routed = next(parts(model)).router.weight.shape[0]
    if not 1 <= per_token <= routed:
        raise InputError(f"per_token: {per_token} is not between 1 and the model's {routed} experts")
    model.config.num_experts_per_tok = per_token
    for part in parts(model):
        part.router.top_k = per_token


class Routing:
    """Context manager that records what the routers decide.

    `logits[i]` is [T, E], `indices[i]` and `weights[i]` are [T, K] of the i-th MoE layer; each forward pass replaces the last one's.
    """

    def __init__(self, model: nn.Module):
        found: list[tuple[Parts, Any]] = []
        for part in parts(model):
            base: Any = model.model
            # depth.skip.LayerSkip: the router sees only the tokens that run, and none in a pruned layer
            skip = getattr(base.layers[part.layer], "depth_skip", None)
            if skip is None or skip.router is not None:
                found.append((part, skip))
        self.layers, self.skips = [part for part, _ in found], [skip for _, skip in found]
        self.logits: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}
        self.indices: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "Routing":
        for index, part in enumerate(self.layers):
            self._handles.append(part.router.register_forward_hook(self._hook(index)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, index: int) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            self.logits[index], self.weights[index], self.indices[index] = output

        return record
