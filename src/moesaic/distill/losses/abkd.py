"""`abkd`: alpha-beta divergence (Wang et al., ABKD, ICML 2025, arXiv 2505.04560; the divergence is Cichocki et al., Entropy 13, 2011).

A plane of divergences: forward KL at (1, 0), reverse KL at (0, 1), Hellinger at (1/2, 1/2). Alpha weighs the ratio p / q, beta the student's mass.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses.base import Method, Text, accurate, outcomes


def divergence(
    log_q_NC: Tensor, log_p_NC: Tensor, alpha: float, beta: float, weight_NC: Tensor | float = 1.0
) -> Tensor:
    """D(p ; q), nats [N].

    -1 / (alpha beta) * sum[p^alpha q^beta - alpha / (alpha + beta) p^(alpha + beta) - beta / (alpha + beta) q^(alpha + beta)],
    and its limits where alpha or beta is 0.

    Args:
        alpha, beta: not negative and not both 0.
    """
    assert alpha >= 0, alpha
    assert beta >= 0, beta
    assert alpha + beta > 0, "alpha and beta are both 0"
    if beta == 0:
        ratio = alpha * (log_p_NC - log_q_NC)
        p, q = (alpha * log_p_NC).exp(), (alpha * log_q_NC).exp()
        return (weight_NC * (p * ratio - p + q)).sum(dim=1) / alpha**2
    if alpha == 0:
        ratio = beta * (log_q_NC - log_p_NC)
        p, q = (beta * log_p_NC).exp(), (beta * log_q_NC).exp()
        return (weight_NC * (q * ratio - q + p)).sum(dim=1) / beta**2
    total = alpha + beta
    product = (alpha * log_p_NC + beta * log_q_NC).exp()
    powers = alpha * (total * log_p_NC).exp() + beta * (total * log_q_NC).exp()
    return (weight_NC * (powers / total - product)).sum(dim=1) / (alpha * beta)


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """The divergence. Options: abkd.alpha, abkd.beta."""
    own = options["abkd"]
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    (log_q_NC, _), (log_p_NC, weight_NC) = (
        outcomes(log_q_NC, text.weight_NS),
        outcomes(log_p_NC, text.weight_NS),
    )
    return divergence(log_q_NC, log_p_NC, own["alpha"], own["beta"], weight_NC)


METHOD = Method(loss)
