"""Distillation losses by their names in the configuration.

`kd`: forward KL from teacher to student on given text (word-level knowledge distillation; Hinton et al., arXiv 1503.02531),
computed in train/objectives.py chunk by chunk beside cross entropy.
"""

from typing import Any

from moesaic.train.objectives import Weights


def _kd(settings: dict[str, Any]) -> Weights:
    return Weights(
        settings["balance"],
        settings["z_loss"],
        1.0 - settings["language_model"],
        settings["temperature"],
        settings["router"],
    )


METHODS = {"kd": _kd}
