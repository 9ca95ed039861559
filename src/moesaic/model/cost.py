"""FLOPs of a token, from a model's class."""

from typing import Any

from moesaic.model import depth, families, size


def flops_per_token(model: Any, length: int, training: bool) -> float:
    """Matrix products of the active weights, and of the attention scores over half of the context on average."""
    counted, config = size.count(model), model.config
    idle = counted.active - counted.running(depth.shares(model))
    heads = config.num_attention_heads * families.base.head_dim(config)
    scores = 2 * 2 * config.num_hidden_layers * heads * length / 2
    return counted.flops_per_token(training) - (6 if training else 2) * idle + (3 if training else 1) * scores
