"""Distillation losses by their names in the configuration.

`METHODS` work on single positions (base.Method); the trainer computes them chunk by chunk (train/chunked.py), so that full logits are never held.
`PAIRS` work on sequence log-probabilities: (pair_losses.Pairs, settings) -> (loss_B, statistics), chosen the teacher's text, rejected the student's,
the reference model the teacher.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from moesaic.distill.losses import (
    abkd,
    akl,
    cald,
    dpkd,
    dpkd_guarded,
    dpkd_token,
    jsd,
    kd,
    rkl,
    seqkd,
    sft,
    skl,
    srkl,
)
from moesaic.distill.losses.base import Method, Text

__all__ = ["METHODS", "OPTIONS", "PAIRS", "Method", "Text"]

METHODS: dict[str, Method] = {
    "sft": sft.METHOD,
    "kd": kd.METHOD,
    "seqkd": seqkd.METHOD,
    "rkl": rkl.METHOD,
    "jsd": jsd.METHOD,
    "akl": akl.METHOD,
    "skl": skl.METHOD,
    "srkl": srkl.METHOD,
    "cald": cald.METHOD,
    "abkd": abkd.METHOD,
    "dpkd-token": dpkd_token.METHOD,
}
PairLoss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
PAIRS: dict[str, PairLoss] = {
    "dpkd": dpkd.loss,
    "dpkd-token": dpkd_token.pairs,
    "dpkd-guarded": dpkd_guarded.loss,
}
OPTIONS: dict[str, Any] = {
    "jsd": {"beta": 0.5},
    "akl": {"mu": 0.5},
    "skew": {"alpha": 0.1},
    "abkd": {"alpha": 0.2, "beta": 0.7},
    "cald": {"alpha": 0.1, "anchor": 0.0, "beta": 0.5, "beta_end": None},
    "dpkd_token": dpkd_token.DEFAULTS,
}
"""Defaults of the methods' options; schema.LossOptions has the same."""
