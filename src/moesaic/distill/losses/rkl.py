"""`rkl`: reverse KL from student to teacher, token by token (the token-level part of MiniLLM, arXiv 2306.08543; exact, no sampling).

Seeks a mode: the student gives up what it cannot model. Gradients grow without bound where the teacher's probability is tiny.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses.base import Method, Text, accurate, kl


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """KL(q ; p), nats [N]."""
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    return kl(log_q_NC, log_p_NC, text.weight_NS)


METHOD = Method(loss)
