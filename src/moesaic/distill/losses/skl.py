"""`skl`: skew KL (DistiLLM, Ko et al., arXiv 2402.03898, section 3.1).

Forward KL towards a mixture that holds a little of the teacher: the ratio p / m never exceeds 1 / alpha, which bounds the gradient.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses.base import Method, Text, accurate, kl, mixture


def divergence(
    log_q_NC: Tensor, log_p_NC: Tensor, alpha: float | Tensor, weight_NS: Tensor | None = None
) -> Tensor:
    """KL(p ; alpha p + (1 - alpha) q), nats [N]."""
    return kl(log_p_NC, mixture(log_p_NC, log_q_NC, alpha), weight_NS)


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """The divergence with a fixed alpha. Options: skew.alpha."""
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    return divergence(log_q_NC, log_p_NC, options["skew"]["alpha"], text.weight_NS)


METHOD = Method(loss)
