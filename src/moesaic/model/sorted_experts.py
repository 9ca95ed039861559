"""Experts of a CPU: token slots sorted once, one contiguous product per expert that has tokens, gradients written by hand.

transformers' grouped backend gathers the rows of all slots, keeps them and what is made of them for the backward pass, and goes back through two
gathers, which scatter one row after the other. Here rows are gathered expert by expert into one small buffer, in both passes; autograd keeps the layer's
input and the first product alone. The sum over a token's experts is one embedding bag: it reads rows in the order of tokens, so its result does
not depend on threads.

Shapes: T tokens, D model width, E experts, K experts per token, S = T * K token slots sorted by expert, M neurons per expert.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NAME = "sorted"
"""Of this backend in transformers' interface; see `execution.register`."""
TYPES = (torch.float32, torch.float64)
FEW = 16
"""Below so many token slots per expert the loop's own cost shows: without gradients the grouped backend, whose loop is not Python's, is as fast or faster."""
SMALL, WORK = 700_000, 5_000_000
"""Weights of one expert, and weights times token slots per expert, below which a loop over experts costs more than the products it saves."""

TILE = 4096
"""Tokens of one pass: the rows of more fall out of the caches between product and sum."""


def forward(module: Any, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The experts' output [T, D] of a stock experts module: sum over k of weight_k * down(silu(gate x) * up x).

    Few tokens go through all experts at once where these are small. Other few tokens, and what it is not made for (a GPU, autocast, half precision, another
    activation, biases, dropout hooked into the experts) go to transformers' grouped backend.
    """
    slots, one = index_TK.numel(), len(x_TD) == 1
    few = not torch.is_grad_enabled() and not one and slots < FEW * module.num_experts
    if (few and not together(module.down_proj, slots)) or not possible(module, x_TD):
        from transformers.integrations.moe import grouped_mm_experts_forward

        found: Tensor = grouped_mm_experts_forward(module, x_TD, index_TK, weight_TK)
        return found
    return run(x_TD, module.gate_up_proj, module.down_proj, index_TK, weight_TK)


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


def together(down_EDM: Tensor, slots: int) -> bool:
    """Whether all experts in two products are faster than one after the other: small ones with few token slots, which reach about every expert."""
    experts, width, neurons = down_EDM.shape
    weights = 3 * width * neurons
    return experts <= slots and weights < SMALL and slots * weights < WORK * experts


def run(x_TD: Tensor, gate_up_EFD: Tensor, down_EDM: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """Output [T, D] of SwiGLU experts.

    Args:
        gate_up_EFD: gates above ups, F = 2M. index_TK: experts of each token, each at most once. weight_TK: of their outputs.
    """
    if not torch.is_grad_enabled():
        if len(x_TD) == 1:
            return _one(x_TD[0], gate_up_EFD, down_EDM, index_TK[0], weight_TK[0])[None]
        if together(down_EDM, index_TK.numel()):
            return _together(x_TD, gate_up_EFD, down_EDM, index_TK, weight_TK)
    tiles = zip(x_TD.split(TILE), weight_TK.to(x_TD.dtype).split(TILE), index_TK.split(TILE), strict=True)
    found = [
        _Sorted.apply(x_ND, gate_up_EFD, down_EDM, weight_NK, index_NK) for x_ND, weight_NK, index_NK in tiles
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
    both_TEF = (x_TD @ gate_up_EFD.view(-1, width).T).view(len(x_TD), experts, 2 * neurons)
    gate_TEM, up_TEM = both_TEF.chunk(2, dim=2)
    weight_TE = x_TD.new_zeros(len(x_TD), experts).scatter_(1, index_TK, weight_TK.to(x_TD.dtype))
    h_TEM = functional.silu(gate_TEM).mul_(up_TEM).mul_(weight_TE[:, :, None])
    return torch.bmm(h_TEM.transpose(0, 1), down_EDM.transpose(1, 2)).sum(0)


def _groups(counts: list[int]) -> list[tuple[int, int, int]]:
    """(expert, first slot, end) of every expert that has tokens."""
    found, begin = [], 0
    for expert, count in enumerate(counts):
        if count:
            found.append((expert, begin, begin + count))
        begin += count
    return found


def _inverse(order_S: Tensor) -> Tensor:
    """Place of each token slot among the sorted ones [S]."""
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(len(order_S), device=order_S.device)
    return place_S


def _sum_slots(rows_SD: Tensor, place_TK: Tensor) -> Tensor:
    """Sum of each token's rows [T, D]."""
    if not len(place_TK):
        return rows_SD.new_zeros(0, rows_SD.shape[1])
    return functional.embedding_bag(place_TK, rows_SD, mode="sum")


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, gate_up_EFD: Tensor, down_EDM: Tensor, weight_TK: Tensor, index_TK: Tensor
    ) -> Tensor:
        tokens, chosen = index_TK.shape
        width, neurons = down_EDM.shape[1:]
        order_S = index_TK.flatten().argsort(stable=True)
        counts = torch.bincount(index_TK.flatten(), minlength=len(down_EDM)).tolist()  # the one wait
        groups, most = _groups(counts), max(counts)
        token_S, weight_S = order_S // chosen, weight_TK.flatten()[order_S]
        keep = any(ctx.needs_input_grad[:4])
        rows = tokens * chosen if keep else most
        gate_up_SF, out_SD = x_TD.new_empty(rows, 2 * neurons), x_TD.new_empty(tokens * chosen, width)
        x_ND, inner_NM = x_TD.new_empty(most, width), x_TD.new_empty(most, neurons)
        for expert, begin, end in groups:
            count = end - begin
            own_ND = torch.index_select(x_TD, 0, token_S[begin:end], out=x_ND[:count])
            both_NF = gate_up_SF[begin:end] if keep else gate_up_SF[:count]
            torch.mm(own_ND, gate_up_EFD[expert].T, out=both_NF)
            gate_NM, up_NM = both_NF.chunk(2, dim=1)
            own_NM = torch.mul(functional.silu(gate_NM), up_NM, out=inner_NM[:count])
            # the weight goes where there are fewest columns
            torch.mm(own_NM.mul_(weight_S[begin:end, None]), down_EDM[expert].T, out=out_SD[begin:end])
        place_TK = _inverse(order_S).view(tokens, chosen)
        if keep:
            ctx.save_for_backward(
                x_TD, gate_up_EFD, down_EDM, weight_S, gate_up_SF, token_S.to(torch.int32), place_TK
            )
            ctx.groups, ctx.most = groups, most
        return _sum_slots(out_SD, place_TK)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_TD, gate_up_EFD, down_EDM, weight_S, gate_up_SF, token_S, place_TK = ctx.saved_tensors
        wants_x, wants_gate_up, wants_down, wants_weight = ctx.needs_input_grad[:4]
        grad_TD, most, groups = grads[0].contiguous(), ctx.most, ctx.groups
        width, neurons = down_EDM.shape[1:]
        slots = len(token_S)
        grad_x_SD = x_TD.new_empty(slots, width) if wants_x else None
        grad_weight_S = torch.empty_like(weight_S) if wants_weight else None
        grad_gate_up_EFD, grad_down_EDM = _like(gate_up_EFD, wants_gate_up), _like(down_EDM, wants_down)
        rows_ND, inner_NM, grad_NM = (x_TD.new_empty(most, size) for size in (width, neurons, neurons))
        grad_NF = x_TD.new_empty(most, 2 * neurons)
        _clear(groups, len(down_EDM), grad_gate_up_EFD, grad_down_EDM)
        for expert, begin, end in groups:
            count, token_N, weight_N1 = end - begin, token_S[begin:end], weight_S[begin:end, None]
            gate_NM, up_NM = gate_up_SF[begin:end].chunk(2, dim=1)
            active_NM = functional.silu(gate_NM)
            h_NM = torch.mul(active_NM, up_NM, out=inner_NM[:count])
            own_ND = torch.index_select(grad_TD, 0, token_N, out=rows_ND[:count])
            dh_NM = torch.mm(own_ND, down_EDM[expert], out=grad_NM[:count])  # still without the weight
            if grad_weight_S is not None:
                torch.linalg.vecdot(dh_NM, h_NM, out=grad_weight_S[begin:end])
            if grad_down_EDM is not None:
                torch.mm(own_ND.T, h_NM.mul_(weight_N1), out=grad_down_EDM[expert])
            if grad_x_SD is None and grad_gate_up_EFD is None:
                continue
            dh_NM.mul_(weight_N1)
            own_NF = grad_NF[:count]
            torch.mul(dh_NM, active_NM, out=own_NF[:, neurons:])
            torch.ops.aten.silu_backward.grad_input(
                dh_NM.mul_(up_NM), gate_NM, grad_input=own_NF[:, :neurons]
            )
            if grad_x_SD is not None:
                torch.mm(own_NF, gate_up_EFD[expert], out=grad_x_SD[begin:end])
            if grad_gate_up_EFD is not None:
                own_ND = torch.index_select(x_TD, 0, token_N, out=rows_ND[:count])
                torch.mm(own_NF.T, own_ND, out=grad_gate_up_EFD[expert])
        grad_x_TD = None if grad_x_SD is None else _sum_slots(grad_x_SD, place_TK)
        grad_weight_TK = None if grad_weight_S is None else grad_weight_S[place_TK]
        return grad_x_TD, grad_gate_up_EFD, grad_down_EDM, grad_weight_TK, None


def _like(tensor: Tensor, wanted: bool) -> Tensor | None:
    return torch.empty_like(tensor) if wanted else None


def _clear(groups: list[tuple[int, int, int]], experts: int, *grads: Tensor | None) -> None:
    """Experts without tokens have a gradient of zero."""
    for expert in set(range(experts)) - {expert for expert, _, _ in groups}:
        for grad in grads:
            if grad is not None:
                grad[expert].zero_()
