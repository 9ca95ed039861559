"""RMSNorm of a CPU with a gradient written by hand: a third of the time, and half of what transformers' modules keep for the backward pass.

Those compute it in six operations, of which autograd keeps the input and the normalised input. Here it keeps the input, which the residual stream keeps
alive anyway, and one number per row. Zhang and Sennrich 2019 (arXiv:1910.07467), eq. 4, without a bias.
"""

import types
from typing import Any

import torch
from torch import Tensor, nn

EPSILONS = ("variance_epsilon", "eps")
"""Names that transformers' classes have for it."""
PROBE_ROWS = 2


def apply(model: nn.Module) -> int:
    """Give the RMSNorms of a model this forward pass; how many took it.

    A module that computes something else (Gemma's 1 + weight) is left alone: each is tried on random rows. One that lies on a GPU or whose weights are not whole
    yet is left alone too, and a module that moves there later computes its class's own.
    """
    count = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and "forward" not in vars(module) and _same(module):
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


def _forward(module: Any, hidden_states: Tensor) -> Tensor:
    """Of a module: ours where it is made for that, else its class's."""
    x, weight_D = hidden_states, module.weight
    plain = x.device.type == "cpu" and x.dtype == weight_D.dtype == torch.float32
    if not plain or torch.is_autocast_enabled("cpu"):
        found: Tensor = type(module).forward(module, x)
        return found
    return rms_norm(x, weight_D, _epsilon(module))


def rms_norm(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, of any shape [..., D]."""
    found: Tensor = _RmsNorm.apply(x, weight_D, epsilon)
    return found


def _epsilon(module: Any) -> float:
    return float(next(getattr(module, name) for name in EPSILONS if hasattr(module, name)))


def _same(module: Any) -> bool:
    """Whether the module's class computes what `rms_norm` does."""
    weight_D: Any = getattr(module, "weight", None)
    known = weight_D is not None and any(hasattr(module, name) for name in EPSILONS)
    if (
        not known
        or weight_D.device.type != "cpu"
        or weight_D.dtype != torch.float32
        or hasattr(weight_D, "ds_id")
    ):
        return False
    x_ND = torch.randn(PROBE_ROWS, len(weight_D), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.allclose(rms_norm(x_ND, weight_D, _epsilon(module)), module(x_ND), rtol=1e-5, atol=1e-6)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        inverse = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(epsilon).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight_D, inverse)
        return (x * inverse).mul_(weight_D)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight_D, inverse = ctx.saved_tensors
        width = x.shape[-1]
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        x_ND, inverse_N1 = x.reshape(-1, width), inverse.reshape(-1, 1)
        grad_ND = grads[0].reshape(-1, width)
        both_ND = grad_ND * x_ND
        grad_D = torch.mv(both_ND.T, inverse_N1[:, 0]) if wants_weight else None
        if not wants_x:
            return None, grad_D, None
        along_N1 = torch.mv(both_ND, weight_D)[:, None].mul_(inverse_N1**3).div_(-width)
        grad_x_ND = torch.mul(grad_ND, weight_D, out=both_ND).mul_(inverse_N1)
        return grad_x_ND.addcmul_(x_ND, along_N1).view_as(x), grad_D, None
