"""Tiny models with more layers or with layers that skip, for the tests of depth."""

import torch

from moesaic.model import depth
from moesaic.model.depth import skip
from moesaic.schema import Expand, Skip

FAMILIES = {
    "llama": None,
    "mixtral": {},
    "granitemoeshared": {"shared": 32},
    "qwen2_moe": {"shared": 32, "family": "qwen2_moe", "dense_layers": [1]},
    "glm4_moe": {"shared_experts": 1, "experts": 3, "family": "glm4_moe", "dense_layers": [0]},
}
IDS = torch.randint(3, 512, (2, 17), generator=torch.Generator().manual_seed(7))


def expanded(model, **changes):
    depth.expand.expand(model, Expand(**changes).model_dump(mode="json"))
    return model


def routed(model, layers=None, **changes):
    own = Skip(**changes).model_dump(mode="json")
    names = ("threshold", "gate", "normed", "bias", "detach")
    skip.attach(
        model,
        range(model.config.num_hidden_layers) if layers is None else layers,
        **{n: own[n] for n in names},
    )
    return model


def randomise(model, scale=3.0):
    """Routers that send about half of the tokens past their FFN."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for router in skip.routers(model):
            router.weight.copy_(
                scale * torch.randn(router.weight.shape, generator=generator) / router.weight.shape[1] ** 0.5
            )
    return model


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


def run_like(again, model):
    """The same backend for the experts: others differ in the last bits."""
    again.set_experts_implementation(model.config._experts_implementation)
    return again
