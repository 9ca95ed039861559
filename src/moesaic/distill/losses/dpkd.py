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

DEFAULTS: dict[str, Any] = {"beta": 0.1, "length_normalised": True}
"""beta: of the released script; the paper names none."""

Statistics = dict[str, Tensor]


def rewards(
    policy_B: Tensor, reference_B: Tensor, length_B: Tensor, beta: float, length_normalised: bool
) -> Tensor:
    """beta (log q - log p), per token where `length_normalised` [B]."""
    gap_B = (
        policy_B.float() - reference_B.float() if policy_B.dtype != torch.float64 else policy_B - reference_B
    )
    return beta * gap_B / length_B if length_normalised else beta * gap_B


def statistics(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    length_chosen_B: Tensor,
    length_rejected_B: Tensor,
    reward_chosen_B: Tensor,
    reward_rejected_B: Tensor,
) -> Statistics:
    """What to log of each pair, without gradient [B]: log-probabilities are means per token, rewards and margin as the loss sees them."""
    with torch.no_grad():
        margin_B = reward_chosen_B - reward_rejected_B
        return {
            "margin": margin_B.detach(),
            "accuracy": (margin_B > 0).float(),
            "reward_chosen": reward_chosen_B.detach(),
            "reward_rejected": reward_rejected_B.detach(),
            "student_of_teacher_text": (policy_chosen_B / length_chosen_B).detach(),
            "student_of_student_text": (policy_rejected_B / length_rejected_B).detach(),
            "teacher_of_teacher_text": ref_chosen_B / length_chosen_B,
            "teacher_of_student_text": ref_rejected_B / length_rejected_B,
        }


def loss(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    length_chosen_B: Tensor,
    length_rejected_B: Tensor,
    settings: Mapping[str, Any],
) -> tuple[Tensor, Statistics]:
    """The loss of each pair, and what to log.

    Args:
        policy_chosen_B, policy_rejected_B: log q of teacher text and of student text, summed over the answer's tokens.
        ref_chosen_B, ref_rejected_B: log p of the same. length_chosen_B, length_rejected_B: answer tokens. settings: see DEFAULTS.
    """
    own = DEFAULTS | dict(settings)
    chosen_B = rewards(policy_chosen_B, ref_chosen_B, length_chosen_B, own["beta"], own["length_normalised"])
    rejected_B = rewards(
        policy_rejected_B, ref_rejected_B, length_rejected_B, own["beta"], own["length_normalised"]
    )
    found = statistics(
        policy_chosen_B, policy_rejected_B, ref_chosen_B, ref_rejected_B, length_chosen_B, length_rejected_B, chosen_B, rejected_B
    )  # fmt: skip
    return -functional.logsigmoid(chosen_B - rejected_B), found
