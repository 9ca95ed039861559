"""Which neuron goes where: the result of a split."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """The widths of one layer's split."""

    width: int
    """F, neurons of the dense FFN."""
    shared: int
    """S, neurons that always run."""
    experts: int
    """E, routed experts."""
    neurons: int
    """M, neurons of a routed expert."""
    granularity: int = 1
    """For copying methods: how many experts one copy of the FFN is cut into."""

    @property
    def copies(self) -> int:
        """How many experts hold a neuron, for copying methods."""
        return self.experts // self.granularity


@dataclass(frozen=True)
class Assignment:
    """A split of F neurons into S shared ones and E experts of M each."""

    shared_S: Tensor
    """Indices of the neurons that always run, ascending."""
    routed_EM: Tensor
    """Indices of each expert's neurons, ascending."""
    score_F: Tensor
    """The method's importance of each neuron, for the audit (0 where the method has none)."""
    copy_E: Tensor | None = None
    """For copying methods: the copy of the FFN that each expert is a piece of (they share a router row)."""
    fresh_EM: Tensor | None = None
    """Drop-upcycling: True for the neurons whose weights are drawn anew."""

    def check(self, sizes: Sizes, overlap: bool) -> None:
        """Sizes are exact and every neuron is used: exactly once, or, with `overlap`, at least once and not twice in one expert."""
        width = sizes.width
        assert self.shared_S.shape == (sizes.shared,), (
            f"{self.shared_S.numel()} shared neurons, {sizes.shared} asked for"
        )
        assert self.routed_EM.shape == (sizes.experts, sizes.neurons), (
            f"experts of shape {tuple(self.routed_EM.shape)}"
        )
        shared = torch.bincount(self.shared_S, minlength=width)
        assert shared.numel() == width, "a neuron that does not exist is shared"
        assert shared.max() <= 1, "a shared neuron is given twice"
        for expert in self.routed_EM:
            assert expert.unique().numel() == expert.numel(), "an expert holds a neuron twice"
        held = self.multiplicity()
        assert not bool((held[self.shared_S] > 0).any()), "a shared neuron is in a routed expert too"
        assert bool((held + shared > 0).all()), (
            f"{int((held + shared == 0).sum())} neurons of {width} are in no expert"
        )
        assert overlap or held.max() <= 1, "a neuron is in two experts"

    def multiplicity(self) -> Tensor:
        """How many routed experts hold each neuron [F]; 0 for shared ones."""
        return torch.bincount(self.routed_EM.flatten(), minlength=self.score_F.numel())


def from_labels(
    shared_S: Tensor, rest_R: Tensor, labels_R: Tensor, experts: int, score_F: Tensor
) -> Assignment:
    """An assignment from the experts' numbers of the neurons that are not shared."""
    routed = torch.stack([rest_R[labels_R == expert].sort().values for expert in range(experts)])
    return Assignment(shared_S.sort().values, routed, score_F)


def generator(seed: int, layer: int, purpose: int) -> torch.Generator:
    """A random stream of its own for each layer and purpose, so that methods do not disturb each other."""
    return torch.Generator().manual_seed((seed * 1_000_003 + layer) * 97 + purpose)
