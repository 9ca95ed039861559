"""Write the split layers into a stock MoE class, and prove that nothing was lost.

Shapes: D model width, F dense FFN width, E experts, M neurons per expert, S shared neurons, K experts per token.
"""

from typing import Any

import torch
from torch import Tensor

from moesaic.errors import InputError
from moesaic.experts.calibrate import Layer, ffns
from moesaic.model import families


def neurons_per_expert(ffn: int, settings: dict[str, Any]) -> int:
    """Width M of a routed expert. Raises InputError when the routed neurons do not divide by the experts."""
    shared, experts = settings["shared"], settings["experts"]
    if shared >= ffn:
        raise InputError(
            f"experts.shared: {shared} shared neurons leave none of the model's {ffn} for routed experts"
        )
    if (ffn - shared) % experts:
        near = [n for n in range(1, 65) if (ffn - shared) % n == 0]
        raise InputError(
            f"experts.experts: {experts} experts do not divide the FFN width {ffn} less {shared} shared neurons; "
            f"{ffn - shared} divides by {', '.join(map(str, near))}; or change experts.shared"
        )
    return (ffn - shared) // experts


def scale_factor(settings: dict[str, Any]) -> float:
    """Factor on the softmax weights of the chosen experts; it is folded into their down projections."""
    experts, per_token = settings["experts"], settings["per_token"]
    return {
        "mean": float(per_token),
        "unit": float(per_token),
        "n-over-k": experts / per_token,
        "softmax": 1.0,
    }[settings["scale"]]


@torch.no_grad()
def build(dense: Any, layers: list[Layer], settings: dict[str, Any], refitted: bool) -> Any:
    """The MoE model in its standard class.

    Args:
        refitted: take the refitted down projections; False takes the dense ones (for the equivalence check).
    """
    neurons = neurons_per_expert(dense.config.intermediate_size, settings)
    config = families.moe_config(
        dense.config, settings["experts"], settings["per_token"], neurons, settings["shared"]
    )
    model = families.build(config)
    own, given = model.state_dict(), dense.state_dict()
    missing = [name for name in given if ".mlp." not in name and name not in own]
    assert not missing, f"the MoE class has no place for {missing}"
    for name, value in given.items():
        if ".mlp." not in name:
            own[name].copy_(value)
    for part, layer, ffn in zip(families.parts(model), layers, ffns(dense), strict=True):
        fill(part, layer, ffn, layer.down_DF if refitted else ffn.down_DF, scale_factor(settings))
    model.generation_config = dense.generation_config
    return model.to(dense.dtype).eval()


def fill(part: families.Parts, layer: Layer, ffn: Any, down_DF: Tensor, scale: float) -> None:
    """Copy one layer's neurons into the MoE block's stacked tensors."""
    routed_EM, shared_S = layer.assignment.routed_EM, layer.assignment.shared_S
    part.router.weight.copy_(layer.router_ED)
    part.experts.gate_up_proj.copy_(torch.cat([ffn.gate_FD[routed_EM], ffn.up_FD[routed_EM]], dim=1))
    part.experts.down_proj.copy_(scale * down_DF[:, routed_EM].transpose(0, 1))
    if part.shared is not None:
        part.shared.input_linear.weight.copy_(torch.cat([ffn.gate_FD[shared_S], ffn.up_FD[shared_S]]))
        part.shared.output_linear.weight.copy_(down_DF[:, shared_S])


@torch.no_grad()
def equivalence(dense: Any, model: Any, settings: dict[str, Any], ids_BT: Tensor) -> dict[str, Any]:
    """All experts on and unit scores must reproduce the dense logits. The model is left as it was.

    A zero router with K = E gives each expert the weight 1/E; times E over the scale already folded in, that is 1.

    Raises:
        InputError: the largest difference exceeds the tolerance of the dtype.
    """
    per_token = model.config.num_experts_per_tok
    kept = [
        (part, part.router.weight.clone(), part.experts.down_proj.clone()) for part in families.parts(model)
    ]
    families.set_per_token(model, settings["experts"])
    for part, _, _ in kept:
        part.router.weight.zero_()
        part.experts.down_proj.mul_(settings["experts"] / scale_factor(settings))
    expected, found = dense(input_ids=ids_BT).logits.float(), model(input_ids=ids_BT).logits.float()
    families.set_per_token(model, per_token)
    for part, router, down in kept:
        part.router.weight.copy_(router)
        part.experts.down_proj.copy_(down)
    error, largest = float((expected - found).abs().max()), float(expected.abs().max())
    tolerance = largest * (1e-4 if dense.dtype == torch.float32 else 5e-2)
    if not error <= tolerance:
        raise InputError(
            f"construct: with all experts on and unit scores the logits differ from the dense model's by {error:.3g} "
            f"(allowed {tolerance:.3g}); the architecture of model.at is not represented exactly"
        )
    return {"max_logit_error": error, "tolerance": tolerance, "max_logit": largest, "tokens": ids_BT.numel()}
