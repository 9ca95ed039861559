"""Mixture `ref-loss`: MoE-SFT's baseline, more of what is further behind a reference model.

MoE-SFT (arXiv 2406.11256, section 4.2, after DoReMi, arXiv 2305.10429, and Sheared-LLaMA, arXiv 2310.06694): with the excess loss
g_d = loss_d - reference_d of each dataset, negative ones too, w <- softmax(log w + eta g), then (1 - c) w + c / D; eta 1, c 1e-4.
The reference is the dense parent on the same validation rows, measured once, before training.
"""

import math
from collections.abc import Mapping
from typing import Any

from moesaic.data.mixtures.base import Observation, smoothed
from moesaic.data.mixtures.dynamic import Dynamic


class RefLoss(Dynamic):
    """Exponentiated gradient on the excess loss, smoothed; the balance loss has no part in it."""

    def score(self, name: str, gap: float, seen: Observation) -> float:
        return math.log(self.weights[name]) + self.settings["step_size"] * gap

    @staticmethod
    def fit(weights: Mapping[str, float], settings: Mapping[str, Any]) -> dict[str, float]:
        return smoothed(weights, settings["smoothing"])
