"""`jsd`: generalised Jensen-Shannon divergence (GKD, Agarwal et al., arXiv 2306.13649, section 3).

Between forward KL (beta to 0) and reverse KL (beta to 1) up to a factor: JSD_beta / beta goes to KL(p ; q) and JSD_beta / (1 - beta) to KL(q ; p).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses.base import Method, Text, accurate, kl, mixture


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """beta KL(p ; m) + (1 - beta) KL(q ; m) with m = beta p + (1 - beta) q, nats [N]. Options: jsd.beta."""
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    beta = options["jsd"]["beta"]
    log_m_NC = mixture(log_p_NC, log_q_NC, beta)
    weight_NS = text.weight_NS
    return beta * kl(log_p_NC, log_m_NC, weight_NS) + (1 - beta) * kl(log_q_NC, log_m_NC, weight_NS)


METHOD = Method(loss)
