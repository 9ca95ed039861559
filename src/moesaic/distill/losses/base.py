"""What the token losses have in common: their inputs, and mixtures of distributions in logarithms.

Shapes: N target positions, V vocabulary, C outcomes that student and teacher are compared on: all V tokens; or with an offline teacher its likeliest
ones, and either all others together or a weighted sample of them.

A position is one where the next token counts (`targets != IGNORE`): prompts and padding never do. A loss gives nats per position; the trainer sums
them and divides by the number of positions in the whole optimizer step, so neither the length of a text nor the number of ranks changes its weight.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """The text whose positions are trained, for the losses that look at more than two distributions."""

    nll_N: Tensor
    """-log q(next token) of the student, with gradient."""
    taught_nll_N: Tensor | None = None
    """-log p(next token) of the teacher."""
    own_N: Tensor | None = None
    """True where the student wrote the text itself; None: nowhere."""
    progress: float = 0.0
    """Share of the training that is done."""
    rest: bool = False
    """True: the last outcome is all the tokens together that are not listed (offline teacher)."""
    weight_NC: Tensor | None = None
    """How many outcomes each one stands for (offline teacher with a sampled tail); None: itself alone."""


Loss = Callable[[Tensor, Tensor, Text, Mapping[str, Any]], Tensor]
"""(log q of the student [N, C], log p of the teacher [N, C], text, options) -> nats per position [N]."""


@dataclass(frozen=True)
class Method:
    """A token loss and what it needs."""

    loss: Loss
    teacher: bool = True
    """False: the teacher's probabilities are not looked at."""
    text: bool = False
    """True: the teacher's probability of the text's own token is looked at too."""
    offline: bool = True
    """False: it needs the teacher's probability of every token, which a top-k cache does not have."""


def accurate(log_q_NC: Tensor, log_p_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision as float32: sums over a vocabulary lose whole digits in bfloat16."""
    half = (torch.bfloat16, torch.float16)
    return (
        log_q_NC.float() if log_q_NC.dtype in half else log_q_NC,
        log_p_NC.float() if log_p_NC.dtype in half else log_p_NC,
    )


def kl(log_a_NC: Tensor, log_b_NC: Tensor, weight_NC: Tensor | None = None) -> Tensor:
    """KL(a ; b) = sum a log(a / b) per position [N].

    On a weighted sample of the outcomes each term is a log(a / b) - a + b instead. Over all outcomes that is the same, as both sum to 1; but each
    term is at least 0, and 0 with zero gradient where a = b, so that the estimate has less variance and student = teacher stays a fixed point.
    """
    a_NC = log_a_NC.exp()
    terms_NC = a_NC * (log_a_NC - log_b_NC)
    if weight_NC is None:
        return terms_NC.sum(dim=1)
    return (weight_NC * (terms_NC - a_NC + log_b_NC.exp())).sum(dim=1)


def mixture(log_a_NC: Tensor, log_b_NC: Tensor, share: float | Tensor) -> Tensor:
    """log(share a + (1 - share) b), share strictly between 0 and 1."""
    if isinstance(share, Tensor):
        return torch.logaddexp(log_a_NC + share.log()[:, None], log_b_NC + (1 - share).log()[:, None])
    return torch.logaddexp(log_a_NC + math.log(share), log_b_NC + math.log(1 - share))
