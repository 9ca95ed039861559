"""Random numbers of a layer that depend on the batch's seed alone, so that resumed runs and recomputed activations draw the same."""

import torch


def generator(device: torch.device, seed: int, layer: int) -> torch.Generator:
    """A stream of its own for each layer (below 4099) of each seed; any seed will do."""
    return torch.Generator(device=device).manual_seed((seed * 4099 + layer) % 2**63)
