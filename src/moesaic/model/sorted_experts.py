"""Experts of a CPU: token slots sorted once, one contiguous product per expert that has tokens, gradients written by hand.

transformers' grouped backend gathers the rows of all slots, keeps them and what is made of them for the backward pass, and goes back through two
gathers, which scatter one row after the other. Here rows are gathered expert by expert into one small buffer, in both passes; autograd keeps the layer's
input and the first product alone. The loops themselves: `expert_loops`, and in C++ `compiled_loops`.

Shapes: T tokens, D model width, E experts, K experts per token, S = T * K token slots sorted by expert, M neurons per expert.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.model import compiled_loops
from moesaic.model.expert_loops import PLAIN, Loops

NAME, COMPILED = "sorted", "sorted-compiled"
"""Of this backend in transformers' interface, and of the same with its loops in C++; see `execution.register`."""
TYPES = (torch.float32, torch.float64)
FEW = 16
"""Below so many token slots per expert the loop's own cost shows: without gradients the grouped backend, whose loop is not Python's, is as fast or faster."""
WASTED, UNREAD = 80_000_000, 40_000
"""Below them a loop over experts costs more than it saves: multiplications by experts that a token did not choose, and the weights per expert that the loop would not
have to read (measured for 8 to 48 experts of 16 to 384 neurons at width 576; see docs/methods/training.md)."""


def forward(module: Any, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The experts' output [T, D] of a stock experts module: sum over k of weight_k * down(silu(gate x) * up x).

    Few tokens go through all experts at once where these are small. Other few tokens, and what it is not made for (a GPU, autocast, half precision, another
    activation, biases, dropout hooked into the experts) go to transformers' grouped backend.
    """
    slots, one = index_TK.numel(), len(x_TD) == 1
    few = not torch.is_grad_enabled() and not one and slots < FEW * module.num_experts
    if few and not together(module.down_proj, *index_TK.shape):
        return _stock(module, x_TD, index_TK, weight_TK)
    return _run_or_hand_over(module, x_TD, index_TK, weight_TK, PLAIN)


def compiled_forward(module: Any, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The same with compiled loops, which are the fastest for few tokens too."""
    return _run_or_hand_over(module, x_TD, index_TK, weight_TK, compiled_loops.loops())


def _run_or_hand_over(module: Any, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor, loops: Loops) -> Tensor:
    if not possible(module, x_TD):
        return _stock(module, x_TD, index_TK, weight_TK)
    return run(x_TD, module.gate_up_proj, module.down_proj, index_TK, weight_TK, loops)


def _stock(*asked: Any) -> Tensor:
    from transformers.integrations.moe import grouped_mm_experts_forward

    found: Tensor = grouped_mm_experts_forward(*asked)
    return found


def possible(module: Any, x_TD: Tensor) -> bool:
    """Whether `run` computes what this module does."""
    from transformers.activations import SiLUActivation
    from transformers.integrations import moe

    device = x_TD.device.type
    stock = type(module)._apply_gate is moe._default_apply_gate and "_apply_gate" not in vars(module)
    layout = module.has_gate and module.is_concatenated and not (module.has_bias or module.is_transposed)
    # under ZeRO-3 with depth skipping two ranks disagreed about what to fetch (tests/e2e/test_depth_stage.py): stock backend there
    partitioned = hasattr(module.gate_up_proj, "ds_id")
    more = module._is_expert_parallel or module.has_post_expert_norm or partitioned
    exact = x_TD.dtype in TYPES and x_TD.dtype == module.gate_up_proj.dtype
    plain = device == "cpu" and exact and not torch.is_autocast_enabled(device)
    return plain and stock and layout and not more and isinstance(module.act_fn, (SiLUActivation, nn.SiLU))


def together(down_EDM: Tensor, tokens: int, chosen: int) -> bool:
    """Whether all experts in two products are faster than one after the other: small ones with few tokens, which reach about every expert."""
    experts, width, neurons = down_EDM.shape
    weights = 3 * width * neurons
    unread = weights * math.exp(-tokens * chosen / experts)  # an expert's chance to be nobody's choice
    return tokens * (experts - chosen) * weights < WASTED and unread < UNREAD


def run(
    x_TD: Tensor,
    gate_up_EFD: Tensor,
    down_EDM: Tensor,
    index_TK: Tensor,
    weight_TK: Tensor,
    loops: Loops = PLAIN,
) -> Tensor:
    """Output [T, D] of SwiGLU experts.

    Args:
        gate_up_EFD: gates above ups, F = 2M. index_TK: experts of each token, each at most once. weight_TK: of their outputs.
    """
    weight_TK = weight_TK.to(x_TD.dtype)
    if loops.tile is None:
        whole: Tensor = _Sorted.apply(x_TD, gate_up_EFD, down_EDM, weight_TK, index_TK, loops)
        return whole
    if not torch.is_grad_enabled():
        if len(x_TD) == 1:
            return _one(x_TD[0], gate_up_EFD, down_EDM, index_TK[0], weight_TK[0])[None]
        if together(down_EDM, *index_TK.shape):
            return _together(x_TD, gate_up_EFD, down_EDM, index_TK, weight_TK)
    count = max(1, -(-len(x_TD) // loops.tile))
    parts = [tensor.tensor_split(count) for tensor in (x_TD, weight_TK, index_TK)]
    found = [
        _Sorted.apply(x_ND, gate_up_EFD, down_EDM, weight_NK, index_NK, loops)
        for x_ND, weight_NK, index_NK in zip(*parts, strict=True)
    ]
    return found[0] if len(found) == 1 else torch.cat(found)


def _one(x_D: Tensor, gate_up_EFD: Tensor, down_EDM: Tensor, index_K: Tensor, weight_K: Tensor) -> Tensor:
    """One token's output [D]: matrix times vector, nothing to sort."""
    out_D = torch.zeros_like(x_D)
    for expert, weight in zip(index_K.tolist(), weight_K.tolist(), strict=True):
        gate_M, up_M = torch.mv(gate_up_EFD[expert], x_D).chunk(2)
        out_D.addmv_(down_EDM[expert], functional.silu(gate_M).mul_(up_M), alpha=weight)
    return out_D


def _together(
    x_TD: Tensor, gate_up_EFD: Tensor, down_EDM: Tensor, index_TK: Tensor, weight_TK: Tensor
) -> Tensor:
    """All experts on all tokens, where a weight of zero leaves out those that were not chosen: the work of the dense FFN, at its speed."""
    experts, width, neurons = down_EDM.shape
    # the tokens stand last: few columns beside large weights are faster than few rows
    both_EFT = (gate_up_EFD.view(-1, width) @ x_TD.T).view(experts, 2 * neurons, len(x_TD))
    gate_EMT, up_EMT = both_EFT.chunk(2, dim=1)
    weight_ET = x_TD.new_zeros(experts, len(x_TD)).scatter_(0, index_TK.T, weight_TK.T)
    h_EMT = functional.silu(gate_EMT).mul_(up_EMT).mul_(weight_ET[:, None])
    return torch.bmm(down_EDM, h_EMT).sum(0).T.contiguous()


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gate_up_EFD: Tensor,
        down_EDM: Tensor,
        weight_TK: Tensor,
        index_TK: Tensor,
        loops: Loops,
    ) -> Tensor:
        order_S = index_TK.flatten().argsort(stable=True).to(torch.int32)
        counts = torch.bincount(index_TK.flatten(), minlength=len(down_EDM)).tolist()  # the one wait
        weight_S = weight_TK.flatten()[order_S]
        chosen = index_TK.shape[1]
        out_TD, gate_up_SF = loops.forward(x_TD, gate_up_EFD, down_EDM, weight_S, order_S // chosen, counts)
        if any(ctx.needs_input_grad[:4]):
            ctx.save_for_backward(x_TD, gate_up_EFD, down_EDM, weight_S, gate_up_SF, order_S)
            ctx.counts, ctx.chosen, ctx.loops = counts, chosen, loops
        return out_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_TD, gate_up_EFD, down_EDM, weight_S, gate_up_SF, order_S = ctx.saved_tensors
        wants, wants_weight = ctx.needs_input_grad[:3], ctx.needs_input_grad[3]
        token_S = order_S // ctx.chosen
        grad_x_TD, grad_gate_up_EFD, grad_down_EDM, sorted_S = ctx.loops.backward(
            grads[0].contiguous(),
            x_TD,
            gate_up_EFD,
            down_EDM,
            weight_S,
            token_S,
            ctx.counts,
            gate_up_SF,
            *wants,
        )
        grad_weight_TK = None
        if wants_weight:
            grad_S = torch.empty_like(weight_S)
            grad_S[order_S] = sorted_S
            grad_weight_TK = grad_S.view(-1, ctx.chosen)
        return grad_x_TD, grad_gate_up_EFD, grad_down_EDM, grad_weight_TK, None, None
