"""What the routers of one MoE layer decided on a micro-batch, as the balancing methods see it.

Shapes: T tokens that count (padding never does), E experts, K experts per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """One layer."""

    logits_TE: Tensor
    """Clean logits, without noise."""
    index_TK: Tensor
    """Chosen experts."""
    weight_TK: Tensor
    """Their weights, as the layer uses them."""
    scores: str = "softmax"
    """How logits become weights: softmax or sigmoid, see model.families."""
    noisy_TE: Tensor | None = None
    """Logits with noise, when the choice was made on them."""
    sigma_TE: Tensor | None = None
    """Standard deviation of the noise."""
    bias_E: Tensor | None = None
    """Added to sigmoid scores for the choice alone; None where the architecture has none."""

    @property
    def probability_TE(self) -> Tensor:
        """The router's distribution over all experts, before any choice."""
        if self.scores == "sigmoid":
            score_TE = self.logits_TE.sigmoid()
            return score_TE / score_TE.sum(dim=1, keepdim=True)
        return self.logits_TE.softmax(dim=1)

    @property
    def load_E(self) -> Tensor:
        """Token slots that each expert got (counts, no gradient)."""
        return torch.bincount(self.index_TK.flatten(), minlength=self.logits_TE.shape[1]).float()


def squared_cv(values_E: Tensor) -> Tensor:
    """var / mean^2, 0 when all are equal."""
    return values_E.var(unbiased=False) / (values_E.mean().square() + 1e-10)
