"""`seqkd`: sequence-level distillation (Kim and Rush, arXiv 1606.07947, section 3.2), cross entropy on text that the teacher wrote.

It is `sft` on other text: the data must be the teacher's own answers, which is what the name promises. It is the mode approximation of KL(p ; q)
over whole sequences, and needs no probabilities of the teacher while it trains.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses.base import Method, Text


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """-log q(y_t), nats [N]."""
    return text.nll_N


METHOD = Method(loss, teacher=False)
