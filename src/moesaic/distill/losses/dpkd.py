"""`dpkd`: Direct Preference Knowledge Distillation (Li et al., arXiv 2406.19774), a preference loss between teacher text and student text.

The implicit reward of a text y is r(y) = beta log(q(y) / p(y)) (eq. 5, the partition function cancels): student over teacher. The loss is that of
Bradley and Terry for preferring the teacher's text, each reward divided by its text's length (eq. 9):

    -log s(beta D(y_t) / |y_t| - beta D(y_s) / |y_s|),  D(y) = log q(y) - log p(y).

That is DPO (arXiv 2305.18290) with the teacher as the reference model, the teacher's text as the chosen and the student's as the rejected one. Its
gradient is -beta s(-margin) (grad log q(y_t) / |y_t| - grad log q(y_s) / |y_s|): the weight falls as the margin grows. Eq. 11, 28 and 30 of the
paper print the argument of s with the opposite sign; finite differences agree with the one above (tests/distill/test_pair_losses.py).

The language-model term of algorithm 1 (lambda times cross entropy on a corpus) is not a matter of pairs: the trainer adds it from its own batch.

Shapes: B pairs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.distill.losses.base import accurate
from moesaic.train.pair_losses import Pairs, log_ratios

DEFAULTS: dict[str, Any] = {"beta": 0.1, "length_normalised": True}
"""beta: of the released script; the paper names none."""

Statistics = dict[str, Tensor]


def compare(pairs: Pairs, beta: float, length_normalised: bool) -> tuple[Tensor, Tensor, Statistics]:
    """Rewards beta (log q - log p) of the teacher's and of the student's text [B], per token where `length_normalised`, and what to log of each pair.

    Statistics are without gradient [B]: log-probabilities are means per token, rewards and margin as the loss sees them.
    """
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pairs, length_normalised))
    with torch.no_grad():
        margin_B = chosen_B - rejected_B
        found = {
            "margin": margin_B,
            "accuracy": (margin_B > 0).float(),
            "reward_chosen": chosen_B.detach(),
            "reward_rejected": rejected_B.detach(),
            "student_of_teacher_text": pairs.policy_chosen_B / pairs.length_chosen_B,
            "student_of_student_text": pairs.policy_rejected_B / pairs.length_rejected_B,
            "teacher_of_teacher_text": pairs.ref_chosen_B / pairs.length_chosen_B,
            "teacher_of_student_text": pairs.ref_rejected_B / pairs.length_rejected_B,
        }
    return chosen_B, rejected_B, found


def loss(pairs: Pairs, settings: Mapping[str, Any]) -> tuple[Tensor, Statistics]:
    """The loss of each pair, and what to log.

    Args:
        pairs: chosen is the teacher's text, rejected the student's; policy is the student, reference the teacher. settings: see DEFAULTS.
    """
    own = DEFAULTS | dict(settings)
    chosen_B, rejected_B, found = compare(Pairs(*accurate(*pairs)), own["beta"], own["length_normalised"])
    return -functional.logsigmoid(chosen_B - rejected_B), found
