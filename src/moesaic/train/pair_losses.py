"""Losses of pairs of answers, from summed log-probabilities: one function each, loss per pair [B], nats.

Preference tuning takes the model before tuning as reference, preference-based distillation the teacher (its sample chosen, the student's
rejected): the formulas are the same.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional


class Pairs(NamedTuple):
    """B pairs; log-probabilities are summed over the tokens of an answer, nats."""

    policy_chosen_B: Tensor
    policy_rejected_B: Tensor
    ref_chosen_B: Tensor
    ref_rejected_B: Tensor
    length_chosen_B: Tensor
    """Tokens of the answer."""
    length_rejected_B: Tensor


PairLoss = Callable[[Pairs, Mapping[str, Any]], Tensor]


def log_ratios(pairs: Pairs, length_normalised: bool) -> tuple[Tensor, Tensor]:
    """log policy / reference of the chosen and of the rejected answers [B]; per token when they are length-normalised."""
    chosen_B = pairs.policy_chosen_B - pairs.ref_chosen_B
    rejected_B = pairs.policy_rejected_B - pairs.ref_rejected_B
    if length_normalised:
        chosen_B, rejected_B = chosen_B / pairs.length_chosen_B, rejected_B / pairs.length_rejected_B
    return chosen_B, rejected_B


def dpo(pairs: Pairs, options: Mapping[str, Any]) -> Tensor:
    """-log sigmoid(beta (ratio of chosen - ratio of rejected)) (Rafailov et al., arXiv 2305.18290, eq. 7).

    `label_smoothing` e: the labels are wrong with probability e (conservative DPO, Mitchell 2023): (1-e) L(z) + e L(-z).
    `length_normalised`: each ratio is divided by its answer's tokens, which is eq. 9 of DPKD (arXiv 2406.19774).
    """
    chosen_B, rejected_B = log_ratios(pairs, options["length_normalised"])
    margin_B = options["beta"] * (chosen_B - rejected_B)
    smoothing = options["label_smoothing"]
    return -(1 - smoothing) * functional.logsigmoid(margin_B) - smoothing * functional.logsigmoid(-margin_B)


def ipo(pairs: Pairs, options: Mapping[str, Any]) -> Tensor:
    """(ratio of chosen - ratio of rejected - 1 / (2 beta))^2 (Azar et al., arXiv 2310.12036, eq. 17): a margin to reach, not to widen for ever."""
    chosen_B, rejected_B = log_ratios(pairs, options["length_normalised"])
    return (chosen_B - rejected_B - 1 / (2 * options["beta"])) ** 2


METHODS: dict[str, PairLoss] = {"dpo": dpo, "ipo": ipo}
