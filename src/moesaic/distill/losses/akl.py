"""`akl`: adaptive KL (Wu et al., arXiv 2404.02657, section 4): forward and reverse KL weighted by where student and teacher differ.

Forward KL fits the teacher's likely tokens first and reverse KL its unlikely ones; so each gets the share of the gap in its part of the vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moesaic.distill.losses.base import Method, Text, accurate, kl, outcomes


@torch.no_grad()
def head_share(log_q_NC: Tensor, log_p_NC: Tensor, mu: float, text: Text) -> Tensor:
    """g_head / (g_head + g_tail) per position [N], g = sum |p - q|; 1/2 where the two distributions are equal.

    The head are the teacher's likeliest tokens whose mass together stays within `mu`, and always the likeliest one.
    """
    if text.rest and text.weight_NS is None:
        # what is left over is tail, however much it is
        order_NC = torch.cat([log_p_NC[:, :-1], torch.full_like(log_p_NC[:, -1:], -torch.inf)], dim=1)
        weight_NC: Tensor | float = 1.0
    else:
        (log_q_NC, _), (log_p_NC, weight_NC) = (
            outcomes(log_q_NC, text.weight_NS),
            outcomes(log_p_NC, text.weight_NS),
        )
        order_NC = log_p_NC
    index_NC = order_NC.argsort(dim=1, descending=True, stable=True)
    p_NC = (log_p_NC.exp() * weight_NC).gather(1, index_NC)
    gap_NC = ((log_p_NC.exp() - log_q_NC.exp()).abs() * weight_NC).gather(1, index_NC)
    head_NC = p_NC.cumsum(dim=1) <= mu
    head_NC[:, 0] = True
    total_N = gap_NC.sum(dim=1)
    head_N = (gap_NC * head_NC).sum(dim=1)
    return torch.where(total_N > 0, head_N / total_N.clamp_min(torch.finfo(total_N.dtype).tiny), 0.5)


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """w KL(p ; q) + (1 - w) KL(q ; p), w without gradient, nats [N]. Options: akl.mu."""
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    share_N = head_share(log_q_NC, log_p_NC, options["akl"]["mu"], text)
    forward_N, reverse_N = kl(log_p_NC, log_q_NC, text.weight_NS), kl(log_q_NC, log_p_NC, text.weight_NS)
    return share_N * forward_N + (1 - share_N) * reverse_N


METHOD = Method(loss)
