"""What benchmarks with random weights share: the architecture of an MoE from its settings."""

from typing import Any

from moesaic.experts import sizes
from moesaic.model import families
from moesaic.model.families import Family, Shape
from moesaic.schema import Experts


def architecture(config: Any, settings: dict[str, Any]) -> tuple[Family, Shape]:
    """Family and shape that `experts` settings give a dense parent's configuration."""
    experts = Experts(**settings).model_dump(mode="json")
    shape = sizes.shape(sizes.sizes(config.intermediate_size, experts), config.num_hidden_layers, experts)
    return families.choose(shape, config, experts["family"])[0], shape
