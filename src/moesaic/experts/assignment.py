"""Which neuron goes where: the result of a split."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """A split of F neurons into S shared ones and E experts of M = (F - S) / E each."""

    shared_S: Tensor
    """Indices of the neurons that always run."""
    routed_EM: Tensor
    """Indices of each expert's neurons."""
    score_F: Tensor
    """The method's importance of each neuron, for the audit (0 where the method has none)."""

    def check(self, width: int) -> None:
        """Every neuron is used exactly once."""
        used = torch.cat([self.shared_S, self.routed_EM.flatten()])
        assert used.numel() == width, f"{used.numel()} neurons assigned, the layer has {width}"
        assert torch.equal(used.sort().values, torch.arange(width)), "a neuron is assigned twice or never"

    def expert_of(self) -> Tensor:
        """Expert index of each neuron [F]; -1 for shared ones."""
        out = torch.full((self.score_F.numel(),), -1, dtype=torch.long)
        for expert, neurons in enumerate(self.routed_EM):
            out[neurons] = expert
        return out


def generator(seed: int, layer: int, purpose: int) -> torch.Generator:
    """A random stream of its own for each layer and purpose, so that methods do not disturb each other."""
    return torch.Generator().manual_seed((seed * 1_000_003 + layer) * 97 + purpose)
