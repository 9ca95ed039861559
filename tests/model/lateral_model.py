"""A tiny model with an adapter for pictures, and rows of text and image tokens for it."""

import torch
from tiny import tiny_llama

from moesaic.model.adapters import attach
from moesaic.model.adapters.layout import ImageTokens
from moesaic.model.adapters.options import Options

TOKENS = ImageTokens(first=400, codes=64, end=470, grids={471: (3, 4), 472: (2, 2), 473: (4, 3), 474: (8, 8)})
KERNELS = ["plain", "depthwise", "analytic", "mosaic"]


def codes(count, seed=0):
    return torch.randint(400, 464, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def image(begin, seed=0, cells=None):
    height, width = TOKENS.grids[begin]
    found = [begin, *codes(height * width, seed), TOKENS.end]
    return found if cells is None else found[: cells + 1]


def text(count, seed=0):
    return torch.randint(3, 400, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def noisy(model, scale=0.3, seed=1):
    """Fill every adapter weight with random numbers, so that nothing is zero by chance of the start."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in attach.adapted(model):
            for p in layer.update_parameters():
                p.add_(scale * torch.randn(p.shape, generator=random))
    return model


def with_adapter(model=None, **options):
    model = tiny_llama() if model is None else model
    attach.attach(model, Options(**{"rank": 4, "alpha": 8.0, "size": 3} | options), TOKENS)
    return model


def logits(model, ids, **options):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **options).logits[0]
