"""What the token losses have in common: their inputs, and mixtures of distributions in logarithms.

Shapes: N target positions, V vocabulary, C outcomes that student and teacher are compared on: all V tokens; or with an offline teacher its likeliest
ones, S drawn from the others (or none) and all others together.

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
    """True: the last outcome is all the tokens together that are not among the likeliest (offline teacher)."""
    weight_NS: Tensor | None = None
    """How many of these tokens each drawn one stands for; the drawn ones are the S outcomes before the last. None: no token was drawn."""


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


def accurate(*values: Tensor) -> tuple[Tensor, ...]:
    """Half precision as float32: sums over a vocabulary, or over an answer's tokens, lose whole digits in bfloat16."""
    half = (torch.bfloat16, torch.float16)
    return tuple(value.float() if value.dtype in half else value for value in values)


def kl(log_a_NC: Tensor, log_b_NC: Tensor, weight_NS: Tensor | None = None) -> Tensor:
    """KL(a ; b) = sum a log(a / b) per position [N].

    With drawn tokens: KL of the likeliest tokens and the others together, which is exact, plus a_rest times the KL within the others, estimated.
    There each drawn token counts a' log(a' / b') - a' + b' with a', b' the probabilities among the others: the last two terms are 0 on average, but
    with them no term is below 0, and student = teacher has value and gradient 0 on any draw.
    """
    if weight_NS is None:
        return (log_a_NC.exp() * (log_a_NC - log_b_NC)).sum(dim=1)
    drawn = slice(-1 - weight_NS.shape[1], -1)
    a_N1, b_N1 = log_a_NC[:, -1:], log_b_NC[:, -1:]
    ratio_NS = (log_a_NC[:, drawn] - a_N1) - (log_b_NC[:, drawn] - b_N1)
    a_NS = log_a_NC[:, drawn].exp()
    within_NS = a_NS * ratio_NS - a_NS + (log_b_NC[:, drawn] - b_N1 + a_N1).exp()
    coarse_NC = log_a_NC.exp() * (log_a_NC - log_b_NC)
    coarse_N = coarse_NC[:, : drawn.start].sum(dim=1) + coarse_NC[:, -1]
    return coarse_N + (weight_NS * within_NS).sum(dim=1)


def outcomes(log_NC: Tensor, weight_NS: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """Columns of single tokens and how many each stands for, for sums over all tokens that are no KL."""
    if weight_NS is None:
        return log_NC, 1.0
    weight_NC = torch.cat(
        [weight_NS.new_ones(len(log_NC), log_NC.shape[1] - 1 - weight_NS.shape[1]), weight_NS], dim=1
    )
    return log_NC[:, :-1], weight_NC


def mixture(log_a_NC: Tensor, log_b_NC: Tensor, share: float | Tensor) -> Tensor:
    """log(share a + (1 - share) b), share strictly between 0 and 1."""
    if isinstance(share, Tensor):
        return torch.logaddexp(log_a_NC + share.log()[:, None], log_b_NC + (1 - share).log()[:, None])
    return torch.logaddexp(log_a_NC + math.log(share), log_b_NC + math.log(1 - share))
