"""`srkl`: skew reverse KL (DistiLLM, Ko et al., arXiv 2402.03898, section 3.1). Reverse KL whose teacher holds a little of the student."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses.base import Method, Text, accurate, kl, mixture


def divergence(
    log_q_NC: Tensor, log_p_NC: Tensor, alpha: float | Tensor, weight_NS: Tensor | None = None
) -> Tensor:
    """KL(q ; (1 - alpha) p + alpha q), nats [N]. The gradient goes through the mixture too."""
    return kl(log_q_NC, mixture(log_q_NC, log_p_NC, alpha), weight_NS)


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """The divergence with a fixed alpha. Options: skew.alpha."""
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    return divergence(log_q_NC, log_p_NC, options["skew"]["alpha"], text.weight_NS)


METHOD = Method(loss)
