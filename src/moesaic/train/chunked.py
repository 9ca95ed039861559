"""Token losses without the full logits: a [tokens, vocabulary] matrix is made and used up chunk by chunk.

Shapes: N target positions, D model width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TokenLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(logits [n, V] float32, which of the N positions) -> (scalar sum to minimise, statistics [n, S] for logging)."""
CHUNK = 1024


class CrossEntropy:
    """Next-token cross entropy as a TokenLoss; `gradient` makes the logits' gradient in their own memory.

    Through autograd the same takes four matrices of a chunk's size: logits, their log-softmax, its gradient and theirs.
    """

    def __init__(self, targets_N: Tensor, columns: Callable[[Tensor], list[Tensor]]):
        """Args: columns: statistics to log, of the losses [n]."""
        self.targets_N, self.columns = targets_N, columns

    def __call__(self, logits_NV: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        nll_N = functional.cross_entropy(logits_NV, self.targets_N[where], reduction="none")
        return nll_N.sum(), torch.stack(self.columns(nll_N), dim=1)

    def gradient(self, logits_NV: Tensor, where: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Sum, statistics and d sum / d logits = softmax - onehot; the logits are overwritten by it."""
        target_N1 = self.targets_N[where][:, None]
        most_N1 = logits_NV.amax(dim=1, keepdim=True)
        chosen_N1 = logits_NV.gather(1, target_N1) - most_N1
        sum_N1 = logits_NV.sub_(most_N1).exp_().sum(dim=1, keepdim=True)
        nll_N = (sum_N1.log() - chosen_N1).squeeze(1)
        grad_NV = logits_NV.div_(sum_N1)
        grad_NV.scatter_add_(1, target_N1, torch.full_like(sum_N1, -1.0))
        return nll_N.sum(), torch.stack(self.columns(nll_N), dim=1), grad_NV


def chunked_loss(
    hidden_ND: Tensor, head_VD: Tensor, loss: TokenLoss, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Sum of a token loss over all positions, and its statistics [N, S].

    Gradients with respect to hidden states and head are computed in the forward pass, chunk by chunk, so nothing is recomputed.
    """
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad):
        total, statistics = _Chunked.apply(hidden_ND, head_VD, loss, chunk)
        return total, statistics
    parts = [
        loss(functional.linear(hidden_ND[i : i + chunk], head_VD).float(), slice(i, i + chunk))
        for i in range(0, len(hidden_ND), chunk)
    ]
    return torch.stack([total for total, _ in parts]).sum(), torch.cat(
        [statistics for _, statistics in parts]
    )


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, loss: TokenLoss, chunk: int) -> Any:
        grad_hidden = torch.zeros_like(hidden_ND)
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        # autocast does not reach an addition in place
        mixed = torch.is_autocast_enabled(hidden_ND.device.type)
        statistics = []
        for start in range(0, len(hidden_ND), chunk):
            where = slice(start, start + chunk)
            logits = functional.linear(hidden_ND[where], head_VD).float()
            if isinstance(loss, CrossEntropy):
                part, stats, grad_logits = loss.gradient(logits, where)
            else:
                with torch.enable_grad():
                    logits.requires_grad_()
                    part, stats = loss(logits, where)
                    (grad_logits,) = torch.autograd.grad(part, logits)
            total += part.detach()
            statistics.append(stats.detach())
            grad_logits = grad_logits.to(head_VD.dtype)
            grad_hidden[where] = (grad_logits @ head_VD).to(hidden_ND.dtype)
            if grad_head is not None and grad_logits.dtype == hidden_ND.dtype == torch.float32 and not mixed:
                grad_head.addmm_(grad_logits.T, hidden_ND[where])
            elif grad_head is not None:
                grad_head += (grad_logits.T @ hidden_ND[where]).float()
            del logits, grad_logits  # before the next chunk's are made
        # not save_for_backward: the head's gradient is as large as the head, and is handed on without a copy
        ctx.gradients = grad_hidden, None if grad_head is None else grad_head.to(head_VD.dtype)
        joined = torch.cat(statistics)
        ctx.mark_non_differentiable(joined)
        return total, joined

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        assert ctx.gradients is not None, "a chunked loss goes back once"
        (grad_hidden, grad_head), ctx.gradients = ctx.gradients, None
        scale = grads[0]
        if grad_head is not None:
            grad_head.mul_(scale)
        return grad_hidden.mul_(scale), grad_head, None, None
