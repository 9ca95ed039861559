"""Students: fewer experts per token, or fewer layers, of the MoE or of the dense parent."""

import copy
from typing import Any

import torch
from torch import nn

from moesaic.errors import InputError
from moesaic.model import families


def make(model: Any, settings: dict[str, Any]) -> Any:
    """A student from a loaded model (which is changed and returned).

    Args:
        settings: schema.Student as a dict.

    Raises:
        InputError: more experts per token than there are, experts asked of a dense student, or layers that do not exist.
    """
    if settings["per_token"] is not None:
        if not families.is_moe(model):
            raise InputError(
                "distill.student.per_token: a dense student has no experts; leave it out or set distill.student.of to moe"
            )
        _fewer_experts(model, settings["per_token"])
    if settings["drop_layers"]:
        _drop_layers(model, settings["drop_layers"])
    return model


def check_teacher(teacher: Any, student: Any) -> None:
    """Refuse a teacher of another vocabulary: its probabilities mean nothing to the student."""
    if teacher.config.vocab_size != student.config.vocab_size:
        raise InputError(
            f"distill.teacher: its vocabulary has {teacher.config.vocab_size} tokens, the student's {student.config.vocab_size}; "
            "KL losses need one vocabulary"
        )


@torch.no_grad()
def _fewer_experts(model: Any, per_token: int) -> None:
    """Top-k weights always sum to 1, so with fewer experts each would weigh more: scale them so that each keeps its mean weight."""
    before = model.config.num_experts_per_tok
    if per_token > before:
        raise InputError(
            f"distill.student.per_token: {per_token} is more than the model's {before}; a student runs fewer experts, not more"
        )
    families.set_per_token(model, per_token)
    for part in families.parts(model):
        part.experts.down_proj.mul_(per_token / before)


def _drop_layers(model: Any, dropped: list[int]) -> None:
    count = model.config.num_hidden_layers
    wrong = [layer for layer in dropped if layer >= count]
    if wrong or len(set(dropped)) >= count:
        raise InputError(
            f"distill.student.drop_layers: {dropped} cannot be dropped from {count} layers (numbered from 0, at least one stays)"
        )
    kept = [layer for index, layer in enumerate(model.model.layers) if index not in set(dropped)]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.model.layers = nn.ModuleList(kept)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [
            kind for index, kind in enumerate(config.layer_types) if index not in set(dropped)
        ]
    model.config = model.model.config = config
