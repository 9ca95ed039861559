"""`dpkd-guarded`: DPKD that does not run away.

On pairs that are not drawn anew, the paper's loss has no floor: the student's text becomes ever less likely, with all text like it (published
replications ended at about a quarter of the claimed ROUGE-L, DistiLLM-2, arXiv 2503.07067, appendix D.1). Four guards:

- an anchor: cross entropy per token on the teacher's text;
- a floor (DPO-Positive, Pal et al., arXiv 2402.13228, per token): what the student gives the teacher's text less than the teacher does;
- a margin clip: a pair whose margin has reached `clip` is done and pulls no more;
- `refresh_due`, when pairs are to be sampled anew, and `Alarm`, which notices a collapse from the likelihood of the student's own text.

Shapes: B pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional

from moesaic.distill.losses import dpkd
from moesaic.distill.losses.base import accurate
from moesaic.train.pair_losses import Pairs, log_ratios

DEFAULTS: dict[str, Any] = {
    "beta": 0.1, "length_normalised": True, "anchor": 0.2, "floor": 0.0, "clip": 2.0, "refresh_every": 100, "refresh_drop": 1.0,
    "alarm_drop": 3.0, "alarm_patience": 5,
}  # fmt: skip
"""anchor, floor: weights. clip: of the margin (rewards, so beta is in it). refresh_every: steps; refresh_drop, alarm_drop: nats per token that the
student's own text has lost since it was sampled, the same text then and now; alarm_patience: steps in a row."""


def loss(pairs: Pairs, settings: Mapping[str, Any]) -> tuple[Tensor, dpkd.Statistics]:
    """-log s(min(margin, clip)) + anchor * (-log q(y_t) / |y_t|) + floor * max(0, log p(y_t) - log q(y_t)) / |y_t|; arguments as in dpkd.loss."""
    own = DEFAULTS | dict(settings)
    pairs = Pairs(*accurate(*pairs))
    chosen_B, rejected_B, found = dpkd.compare(pairs, own["beta"], own["length_normalised"])
    margin_B = chosen_B - rejected_B
    preference_B = -functional.logsigmoid(margin_B.clamp(max=own["clip"]))
    nll_B = -pairs.policy_chosen_B / pairs.length_chosen_B
    behind_B, _ = log_ratios(pairs, True)
    shortfall_B = (-behind_B).clamp_min(0.0)
    found |= {
        "preference": preference_B.detach(),
        "anchor": nll_B.detach(),
        "clipped": (margin_B.detach() >= own["clip"]).float(),
    }
    return preference_B + own["anchor"] * nll_B + own["floor"] * shortfall_B, found


def refresh_due(since: int, drift: float, settings: Mapping[str, Any]) -> bool:
    """True when the student's texts are to be sampled anew: after `refresh_every` steps, or earlier when they are no longer the student's.

    Args:
        since: steps since they were sampled. drift: nats per token that this step's texts of the student have gained since then, mean (negative: lost).
    """
    own = DEFAULTS | dict(settings)
    return since >= own["refresh_every"] or -drift > own["refresh_drop"]


@dataclass
class Alarm:
    """Notices that the student's own text has become implausible to it (log q(y_s) per token), and that its teacher text went the same way."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    bad: int = 0
    """Steps in a row beyond the limit."""

    def sampled(self) -> None:
        """The pairs were drawn anew: measure from here."""
        self.bad = 0

    def check(self, drift: float, theirs: float) -> str | None:
        """After a step; says what is wrong once it has been wrong for `alarm_patience` steps, None otherwise. Not-a-number counts at once.

        Args:
            drift: as of `refresh_due`. theirs: nats per token of the teacher's text under the student, mean.
        """
        own = DEFAULTS | dict(self.settings)
        if drift != drift or theirs != theirs:
            return "log-probabilities are not numbers: the student has diverged"
        self.bad = self.bad + 1 if -drift > own["alarm_drop"] else 0
        if self.bad < own["alarm_patience"]:
            return None
        return (
            f"collapse: the student's own text has lost {-drift:.2f} nats per token since it was sampled (teacher text now: {theirs:.2f}), for {self.bad} steps; "
            "sample pairs more often, raise anchor or beta, or lower the learning rate"
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint; JSON-able."""
        return {"bad": self.bad}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.bad = int(state["bad"])
