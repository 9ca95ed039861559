"""`dpkd-token`: what the public code of DPKD computes (microsoft/LMOps, dpkd/main.py, --seqKD-DPO), which is not the paper's loss.

No text is sampled and no sequence is scored. On given text, at each position, the teacher's likeliest token y_t is preferred to the student's y_s:

    -log s(beta [(log q(y_t) - log q(y_s)) - (log p(y_t) - log p(y_s))]).

Where both likeliest tokens agree it is log 2 without gradient; elsewhere the bracket is never positive. The released script adds one half of cross
entropy on the same text (kd-ratio 0.5), which the paper's loss does not have: `distill.language_model: 0.5`. Length normalisation is off there.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from moesaic.distill.losses import dpkd
from moesaic.distill.losses.base import Method, Text, accurate
from moesaic.train.pair_losses import Pairs

DEFAULTS: dict[str, Any] = {"beta": 0.1}


def loss(log_q_NC: Tensor, log_p_NC: Tensor, text: Text, options: Mapping[str, Any]) -> Tensor:
    """The loss of each position, nats [N]. Options: dpkd_token.beta."""
    log_q_NC, log_p_NC = accurate(log_q_NC, log_p_NC)
    theirs_N1, own_N1 = log_p_NC.argmax(dim=1, keepdim=True), log_q_NC.argmax(dim=1, keepdim=True)

    def at(log_NC: Tensor, index_N1: Tensor) -> Tensor:
        return log_NC.gather(1, index_N1)[:, 0]

    one_N = log_q_NC.new_ones(len(log_q_NC))
    texts = Pairs(
        at(log_q_NC, theirs_N1), at(log_q_NC, own_N1), at(log_p_NC, theirs_N1), at(log_p_NC, own_N1), one_N, one_N
    )  # fmt: skip
    return pairs(texts, options["dpkd_token"])[0]


def pairs(texts: Pairs, settings: Mapping[str, Any]) -> tuple[Tensor, dpkd.Statistics]:
    """The same on any pairs (see dpkd.loss): no length normalisation. A pair here is a position, its two texts are one token each."""
    return dpkd.loss(texts, DEFAULTS | dict(settings) | {"length_normalised": False})


METHOD = Method(loss, offline=False)
