"""`cald`: contrastive distillation (DistiLLM-2, Ko et al., arXiv 2503.07067): skew KL on the teacher's text, skew reverse KL on the student's.

The teacher's text pulls the student's probability up where the teacher puts it, the student's own text pushes it down where the teacher does not.
Text that is not marked as the student's counts as the teacher's, so without student text this is skew KL times 1 - beta.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moesaic.distill.losses import skl, srkl
from moesaic.distill.losses.base import Method, Text, accurate

LEAST = 0.01
"""Smallest alpha, as released."""


@torch.no_grad()
def skewness(gap_N: Tensor, alpha: float, anchor: float) -> Tensor:
    """alpha of each position [N]: clip(1 - (1 - alpha) anchor / gap, 0.01, alpha), and alpha where the gap is not positive.

    The smaller the gap between teacher and student on the text's own token, the smaller the skew, so that easy tokens keep a gradient.

    Args:
        gap_N: p(y) - q(y) on teacher text, q(y) - p(y) on student text. anchor: the gap from which on the skew is the full alpha (in the paper the
            mean gap at the beginning); 0 leaves alpha fixed.
    """
    if anchor == 0:
        return torch.full_like(gap_N, alpha)
    safe_N = gap_N.clamp_min(1e-5)
    found_N = (1 - (1 - alpha) * anchor / safe_N).clamp(LEAST, alpha)
    return torch.where(gap_N > 0, found_N, alpha)


def student_share(options: Mapping[str, Any], progress: float) -> float:
    """beta: weight of the student's text, linear from `beta` to `beta_end` over the training."""
    start: float = options["beta"]
    end = start if options["beta_end"] is None else float(options["beta_end"])
    return start + (end - start) * progress


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """(1 - beta) SKL on teacher text, beta SRKL on student text, nats [N]. Options: cald.alpha, cald.anchor, cald.beta, cald.beta_end."""
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    own = options["cald"]
    beta = student_share(own, text.progress)
    mine_N = text.own_N if text.own_N is not None else torch.zeros_like(text.nll_N, dtype=torch.bool)
    assert text.taught_nll_N is not None
    gap_N = (-text.taught_nll_N).exp() - (-text.nll_N.detach()).exp()
    alpha_N = skewness(torch.where(mine_N, -gap_N, gap_N), own["alpha"], own["anchor"]).to(log_q_NC.dtype)
    out_N = torch.zeros_like(alpha_N)
    for where_N, share, divergence in ((~mine_N, 1 - beta, skl.divergence), (mine_N, beta, srkl.divergence)):
        if where_N.any():
            weight_NS = None if text.weight_NS is None else text.weight_NS[where_N]
            found = divergence(log_q_NC[where_N], log_p_NC[where_N], alpha_N[where_N], weight_NS)
            out_N = out_N.masked_scatter(where_N, share * found)
    return out_N


METHOD = Method(loss, text=True)
