"""`kd`: forward KL from teacher to student on given text, token by token (Hinton et al., arXiv 1503.02531; Kim and Rush, arXiv 1606.07947, section 3.1).

Covers all that the teacher might say: a student too small for that spreads its mass over what lies between the teacher's modes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses.base import Method, Text, accurate, kl


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """KL(p ; q), nats [N]."""
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    return kl(log_p_NC, log_q_NC, text.weight_NS)


METHOD = Method(loss)
