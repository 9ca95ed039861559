"""The loops over SwiGLU experts whose token slots are sorted: by PyTorch's operators.

With g and u the halves of the first product and w the router's weight: h = silu(g) u, the second product takes w h, and d is the gradient of w h over w.
silu' = s (1 + g (1 - s)), s the sigmoid of g. Rows are gathered expert by expert into one small buffer. What is no product runs once over all slots: each call
wakes all threads, and sixteen times as many calls cost more than their work. An expert's rows are added to their tokens' while the caches still hold them, one expert
after the other: the result does not depend on threads.

Shapes: T tokens, D model width, E experts, S token slots sorted by expert, M neurons per expert, F = 2M, N rows of one expert.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TILE = 4096
"""Tokens of one pass: fewer make thinner products and more sums of weight gradients, what is kept of more falls out of the caches."""


class Loops(NamedTuple):
    """One way of running them."""

    forward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, list[int]], tuple[Tensor, Tensor]]
    """Of x [T, D], gate_up [E, F, D], down [E, D, M], weight [S], token [S] (int32) and slots of each expert: the output [T, D] and the first product [S, F]."""
    backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]]
    """Of the output's gradient, all that `forward` took, the first product, and whether gradients of x, gate_up and down are wanted: these (None where not) and the weights' [S]."""
    tile: int | None
    """Tokens of one call at most; None where any number is as well, few ones too."""


def _forward(
    x_TD: Tensor, gate_up_EFD: Tensor, down_EDM: Tensor, weight_S: Tensor, token_S: Tensor, counts: list[int]
) -> tuple[Tensor, Tensor]:
    width, neurons = down_EDM.shape[1:]
    gate_up_SF, out_TD = x_TD.new_empty(len(token_S), 2 * neurons), torch.zeros_like(x_TD)
    rows_ND = x_TD.new_empty(max(counts), width)
    for count, token_N, into_DF, found_NF in _of_experts(
        counts, token_S, gate_up_EFD.mT.unbind(), gate_up_SF
    ):
        own_ND = torch.index_select(x_TD, 0, token_N, out=rows_ND[:count])
        torch.mm(own_ND, into_DF, out=found_NF)
    gate_SM, up_SM = gate_up_SF.chunk(2, dim=1)
    h_SM = functional.silu(gate_SM).mul_(up_SM)
    h_SM.mul_(weight_S[:, None])  # the weight goes where there are fewest columns
    for count, token_N, h_NM, out_MD in _of_experts(counts, token_S, h_SM, down_EDM.mT.unbind()):
        out_TD.index_add_(0, token_N, torch.mm(h_NM, out_MD, out=rows_ND[:count]))
    return out_TD, gate_up_SF


def _backward(
    grad_TD: Tensor,
    x_TD: Tensor,
    gate_up_EFD: Tensor,
    down_EDM: Tensor,
    weight_S: Tensor,
    token_S: Tensor,
    counts: list[int],
    gate_up_SF: Tensor,
    wants_x: bool,
    wants_gate_up: bool,
    wants_down: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
    rows_ND = x_TD.new_empty(max(counts), x_TD.shape[1])
    grad_gate_up_EFD, into_EFD = _like(gate_up_EFD, wants_gate_up)
    grad_down_EDM, into_EDM = _like(down_EDM, wants_down)
    _clear(counts, grad_gate_up_EFD, grad_down_EDM)

    gate_SM, up_SM = gate_up_SF.chunk(2, dim=1)
    grad_SF = torch.empty_like(gate_up_SF)
    active_SM, h_SM = grad_SF.chunk(2, dim=1)  # they wait where their gradients will stand
    torch.ops.aten.silu.out(gate_SM, out=active_SM)
    torch.mul(active_SM, up_SM, out=h_SM)
    weighted_SM = h_SM * weight_S[:, None]
    d_SM = torch.empty_like(weighted_SM)
    for count, token_N, down_DM, d_NM, weighted_NM, into_DM in _of_experts(
        counts, token_S, down_EDM.unbind(), d_SM, weighted_SM, into_EDM
    ):
        own_ND = torch.index_select(grad_TD, 0, token_N, out=rows_ND[:count])
        torch.mm(own_ND, down_DM, out=d_NM)
        if into_DM is not None:
            torch.mm(own_ND.T, weighted_NM, out=into_DM)
    grad_S = torch.linalg.vecdot(d_SM, h_SM)
    d_SM.mul_(weight_S[:, None])
    torch.mul(d_SM, active_SM, out=h_SM)
    torch.ops.aten.silu_backward.grad_input(d_SM.mul_(up_SM), gate_SM, grad_input=active_SM)
    if not (wants_x or wants_gate_up):
        return None, None, grad_down_EDM, grad_S

    grad_x_TD = torch.zeros_like(x_TD) if wants_x else None
    for count, token_N, grad_NF, gate_up_FD, into_FD in _of_experts(
        counts, token_S, grad_SF, gate_up_EFD.unbind(), into_EFD
    ):
        if grad_x_TD is not None:
            grad_x_TD.index_add_(0, token_N, torch.mm(grad_NF, gate_up_FD, out=rows_ND[:count]))
        if into_FD is not None:
            own_ND = torch.index_select(x_TD, 0, token_N, out=rows_ND[:count])
            torch.mm(grad_NF.T, own_ND, out=into_FD)
    return grad_x_TD, grad_gate_up_EFD, grad_down_EDM, grad_S


def _of_experts(counts: list[int], *tensors: Any) -> list[tuple[Any, ...]]:
    """For every expert that has tokens: their number, then its own part of each tensor [S, ...] and its entry of each tuple.

    All views are made at once: one by one they cost a hundredth of a pass.
    """
    parts = [tensor.split(counts) if isinstance(tensor, Tensor) else tensor for tensor in tensors]
    return [own for own in zip(counts, *parts, strict=True) if own[0]]


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


PLAIN = Loops(_forward, _backward, TILE)
