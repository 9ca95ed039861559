"""`sft`: cross entropy on the text as it is. The baseline that every distillation has to beat."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses.base import Method, Text


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """-log q(y), nats [N]."""
    return text.nll_N


METHOD = Method(loss, teacher=False)
