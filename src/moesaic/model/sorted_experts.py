"""Experts of a CPU: token slots sorted once, one contiguous product per expert that has tokens, gradients written by hand.

transformers' grouped backend gathers the rows of all slots, keeps them and what is made of them for the backward pass, and goes back through two
gathers, which scatter one row after the other. Here rows are gathered expert by expert into one small buffer, in both passes; autograd keeps the layer's
input and the first product alone. What is not a product (`swiglu`) runs once over all slots: each call wakes all threads, and sixteen times as many calls
cost more than their work. An expert's rows are added to their tokens' while the caches still hold them, one expert after the other: the result does not depend
on threads.

Shapes: T tokens, D model width, E experts, K experts per token, S = T * K token slots sorted by expert, M neurons per expert.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.model import swiglu

NAME, COMPILED = "sorted", "sorted-compiled"
"""Of this backend in transformers' interface, and of the same with what is no product compiled; see `execution.register`."""
TYPES = (torch.float32, torch.float64)
FEW = 16
"""Below so many token slots per expert the loop's own cost shows: without gradients the grouped backend, whose loop is not Python's, is as fast or faster."""
WASTED, UNREAD = 80_000_000, 40_000
"""Below them a loop over experts costs more than it saves: multiplications by experts that a token did not choose, and the weights per expert that the loop would not
have to read (measured for 8 to 48 experts of 16 to 384 neurons at width 576; see docs/methods/training.md)."""

TILE = 4096
"""Tokens of one pass: fewer make thinner products and more sums of weight gradients, what is kept of more falls out of the caches."""


def forward(
    module: Any, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor, steps: swiglu.Steps = swiglu.PLAIN
) -> Tensor:
    """The experts' output [T, D] of a stock experts module: sum over k of weight_k * down(silu(gate x) * up x).

    Few tokens go through all experts at once where these are small. Other few tokens, and what it is not made for (a GPU, autocast, half precision, another
    activation, biases, dropout hooked into the experts) go to transformers' grouped backend.
    """
    slots, one = index_TK.numel(), len(x_TD) == 1
    few = not torch.is_grad_enabled() and not one and slots < FEW * module.num_experts
    if (few and not together(module.down_proj, *index_TK.shape)) or not possible(module, x_TD):
        from transformers.integrations.moe import grouped_mm_experts_forward

        found: Tensor = grouped_mm_experts_forward(module, x_TD, index_TK, weight_TK)
        return found
    return run(x_TD, module.gate_up_proj, module.down_proj, index_TK, weight_TK, steps)


def compiled_forward(module: Any, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """`forward` with compiled loops."""
    return forward(module, x_TD, index_TK, weight_TK, swiglu.compiled())


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
    steps: swiglu.Steps = swiglu.PLAIN,
) -> Tensor:
    """Output [T, D] of SwiGLU experts.

    Args:
        gate_up_EFD: gates above ups, F = 2M. index_TK: experts of each token, each at most once. weight_TK: of their outputs.
    """
    if not torch.is_grad_enabled():
        if len(x_TD) == 1:
            return _one(x_TD[0], gate_up_EFD, down_EDM, index_TK[0], weight_TK[0])[None]
        if together(down_EDM, *index_TK.shape):
            return _together(x_TD, gate_up_EFD, down_EDM, index_TK, weight_TK)
    count = max(1, -(-len(x_TD) // TILE))
    parts = [tensor.tensor_split(count) for tensor in (x_TD, weight_TK.to(x_TD.dtype), index_TK)]
    found = [
        _Sorted.apply(x_ND, gate_up_EFD, down_EDM, weight_NK, index_NK, steps)
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
    weight_ET = x_TD.new_zeros(experts, len(x_TD)).scatter_(0, index_TK.T, weight_TK.T.to(x_TD.dtype))
    h_EMT = functional.silu(gate_EMT).mul_(up_EMT).mul_(weight_ET[:, None])
    return torch.bmm(down_EDM, h_EMT).sum(0).T.contiguous()


def _of_experts(counts: list[int], *tensors: Any) -> list[tuple[Any, ...]]:
    """For every expert that has tokens: their number, then its own part of each tensor [S, ...] and its entry of each tuple.

    All views are made at once: one by one they cost a hundredth of a pass.
    """
    parts = [tensor.split(counts) if isinstance(tensor, Tensor) else tensor for tensor in tensors]
    return [own for own in zip(counts, *parts, strict=True) if own[0]]


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gate_up_EFD: Tensor,
        down_EDM: Tensor,
        weight_TK: Tensor,
        index_TK: Tensor,
        steps: swiglu.Steps,
    ) -> Tensor:
        tokens, chosen = index_TK.shape
        width, neurons = down_EDM.shape[1:]
        order_S = index_TK.flatten().argsort(stable=True)
        counts = torch.bincount(index_TK.flatten(), minlength=len(down_EDM)).tolist()  # the one wait
        token_S, weight_S = order_S // chosen, weight_TK.flatten()[order_S]
        slots = tokens * chosen
        gate_up_SF, out_TD = x_TD.new_empty(slots, 2 * neurons), torch.zeros_like(x_TD)
        rows_ND = x_TD.new_empty(max(counts), width)
        for count, token_N, into_DF, found_NF in _of_experts(
            counts, token_S, gate_up_EFD.mT.unbind(), gate_up_SF
        ):
            own_ND = torch.index_select(x_TD, 0, token_N, out=rows_ND[:count])
            torch.mm(own_ND, into_DF, out=found_NF)
        h_SM = steps.inner(gate_up_SF, weight_S)  # the weight goes where there are fewest columns
        for count, token_N, h_NM, out_MD in _of_experts(counts, token_S, h_SM, down_EDM.mT.unbind()):
            out_TD.index_add_(0, token_N, torch.mm(h_NM, out_MD, out=rows_ND[:count]))
        if any(ctx.needs_input_grad[:4]):
            ctx.save_for_backward(x_TD, gate_up_EFD, down_EDM, weight_S, gate_up_SF, order_S.to(torch.int32))
            ctx.counts, ctx.chosen, ctx.steps = counts, chosen, steps
        return out_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_TD, gate_up_EFD, down_EDM, weight_S, gate_up_SF, order_S = ctx.saved_tensors
        wants_x, wants_gate_up, wants_down, wants_weight = ctx.needs_input_grad[:4]
        grad_TD, counts, token_S = grads[0].contiguous(), ctx.counts, order_S // ctx.chosen
        rows_ND = x_TD.new_empty(max(counts), x_TD.shape[1])
        grad_gate_up_EFD, into_EFD = _like(gate_up_EFD, wants_gate_up)
        grad_down_EDM, into_EDM = _like(down_EDM, wants_down)
        _clear(counts, grad_gate_up_EFD, grad_down_EDM)

        weighted_SM, left = ctx.steps.before(gate_up_SF, weight_S)
        dh_SM = torch.empty_like(weighted_SM)  # still without the weight
        for count, token_N, down_DM, dh_NM, weighted_NM, into_DM in _of_experts(
            counts, token_S, down_EDM.unbind(), dh_SM, weighted_SM, into_EDM
        ):
            own_ND = torch.index_select(grad_TD, 0, token_N, out=rows_ND[:count])
            torch.mm(own_ND, down_DM, out=dh_NM)
            if into_DM is not None:
                torch.mm(own_ND.T, weighted_NM, out=into_DM)
        grad_SF, sorted_S = ctx.steps.after(gate_up_SF, weight_S, dh_SM, left)
        grad_weight_TK = None
        if wants_weight:
            grad_S = torch.empty_like(weight_S)
            grad_S[order_S] = sorted_S
            grad_weight_TK = grad_S.view(-1, ctx.chosen)
        if not (wants_x or wants_gate_up):
            return None, None, grad_down_EDM, grad_weight_TK, None, None

        grad_x_TD = torch.zeros_like(x_TD) if wants_x else None
        for count, token_N, grad_NF, gate_up_FD, into_FD in _of_experts(
            counts, token_S, grad_SF, gate_up_EFD.unbind(), into_EFD
        ):
            if grad_x_TD is not None:
                grad_x_TD.index_add_(0, token_N, torch.mm(grad_NF, gate_up_FD, out=rows_ND[:count]))
            if into_FD is not None:
                own_ND = torch.index_select(x_TD, 0, token_N, out=rows_ND[:count])
                torch.mm(grad_NF.T, own_ND, out=into_FD)
        return grad_x_TD, grad_gate_up_EFD, grad_down_EDM, grad_weight_TK, None, None


def _like(tensor: Tensor, wanted: bool) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """Room for a gradient and each expert's part of it; nothing where it is not wanted."""
    if not wanted:
        return None, (None,) * len(tensor)
    made = torch.empty_like(tensor)
    return made, made.unbind()


def _clear(counts: list[int], *grads: Tensor | None) -> None:
    """Experts without tokens have a gradient of zero."""
    for expert, count in enumerate(counts):
        for grad in grads:
            if grad is not None and not count:
                grad[expert].zero_()
