"""The convolution between the two factors of the image adapter: what the r channels of neighbouring cells make of each other.

| kernel | learned numbers at rank r, K taps | |
|---|---|---|
| plain | r^2 K | every channel from every channel |
| depthwise | r K | each channel by itself |
| analytic | 6 r (Gabor) | depthwise, each channel's kernel a function of 6 numbers |
| mosaic | between these | depthwise, a share of the channels analytic |

All start as (or near) the identity tap. A causal kernel keeps the taps up to the cell itself; a function is evaluated on the whole grid
and cut afterwards.

Shapes: N image tokens, r rank, K taps, k taps on a side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moesaic.errors import InputError
from moesaic.model.adapters import layout
from moesaic.model.adapters.analytic import FREE, Bank, assign, count
from moesaic.model.adapters.functions import METHODS

START = 0.4
"""Scale of an analytic channel at the beginning, taps: the next tap has exp(-1 / 0.32) = 4 % of the centre, enough for a gradient."""


class Plain(nn.Module):
    """A full r x r matrix per tap."""

    def __init__(self, rank: int, size: int, causal: bool):
        super().__init__()
        self.offsets = layout.taps(size, causal)
        start_Krr = torch.zeros(len(self.offsets), rank, rank)
        start_Krr[self.offsets.index((0, 0))] = torch.eye(rank)
        self.weight = nn.Parameter(start_Krr)
        """Tap by output by input channel."""

    def drawn(self) -> Tensor:
        """What each channel makes of itself, on its grid, 0 where a causal kernel has no tap [r, k, k]."""
        return _spread(self.weight.diagonal(dim1=1, dim2=2), self.offsets)

    def forward(self, taps_NKr: Tensor) -> Tensor:
        """Values at the taps (0 outside the image) -> [N, r]."""
        return taps_NKr.flatten(1) @ self.weight.permute(0, 2, 1).flatten(0, 1)


class Depthwise(nn.Module):
    """One number per channel and tap."""

    def __init__(self, rank: int, size: int, causal: bool):
        super().__init__()
        self.offsets = layout.taps(size, causal)
        start_Kr = torch.zeros(len(self.offsets), rank)
        start_Kr[self.offsets.index((0, 0))] = 1.0
        self.weight = nn.Parameter(start_Kr)

    def drawn(self) -> Tensor:
        """As Plain."""
        return _spread(self.weight, self.offsets)

    def forward(self, taps_NKr: Tensor) -> Tensor:
        """As Plain."""
        return (taps_NKr * self.weight.to(taps_NKr.dtype)).sum(1)


class Mosaic(nn.Module):
    """Depthwise kernels, a share of them functions (all of them: `analytic`)."""

    def __init__(self, rank: int, size: int, causal: bool, kinds: Sequence[str], share: float):
        super().__init__()
        self.offsets = layout.taps(size, causal)
        self.bank = Bank(assign(rank, kinds, share), size, seed=0)
        half = size // 2
        places = [(dy + half) * size + dx + half for dy, dx in self.offsets]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        with torch.no_grad():
            for kind, raw in self.bank.raw.items():
                if kind == FREE:
                    raw.zero_()
                    raw[:, half, half] = 1.0
                else:
                    raw.copy_(_near_identity(kind, raw))

    def weight(self) -> Tensor:
        """One number per tap and channel, [K, r]."""
        found: Tensor = self.bank().flatten(1)[:, self.places].T
        return found

    def drawn(self) -> Tensor:
        """As Plain."""
        return _spread(self.weight(), self.offsets)

    def forward(self, taps_NKr: Tensor) -> Tensor:
        """As Plain."""
        return (taps_NKr * self.weight().to(taps_NKr.dtype)).sum(1)


def _spread(weight_Kr: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Values at the taps on the whole grid [r, k, k]."""
    half = max(abs(move) for offset in offsets for move in offset)
    out_rkk = weight_Kr.new_zeros(weight_Kr.shape[1], 2 * half + 1, 2 * half + 1)
    for (down, right), values_r in zip(offsets, weight_Kr, strict=True):
        out_rkk[:, half + down, half + right] = values_r
    return out_rkk


def _near_identity(kind: str, raw: Tensor) -> Tensor:
    """Narrow bells of amplitude 1, different orientations kept from the draw."""
    function = METHODS[kind]
    parameters = function.constrain(raw.double())
    for i, name in enumerate(function.names):
        if name in ("scale", "along", "across"):
            parameters[:, i] = START
        elif name in ("amplitude", "aspect"):
            parameters[:, i] = 1.0
        elif name == "wavelength":
            parameters[:, i] = 4.0
        elif name == "phase":
            parameters[:, i] = 0.0
    return function.release(parameters).float()


KERNELS = ("plain", "depthwise", "analytic", "mosaic")


def build(
    kernel: str, rank: int, size: int, causal: bool, kinds: Sequence[str] = ("gabor",), share: float = 0.5
) -> Plain | Depthwise | Mosaic:
    """One of KERNELS. Raises InputError for another name, or a derivative among the functions (it has no centre to start from)."""
    if kernel == "plain":
        return Plain(rank, size, causal)
    if kernel == "depthwise":
        return Depthwise(rank, size, causal)
    if kernel not in KERNELS:
        raise InputError(f"adapter.kernel: no kernel '{kernel}'; allowed: {', '.join(KERNELS)}")
    if "derivative" in kinds:
        raise InputError(
            "adapter.functions: derivative is 0 at the cell itself, so the adapter cannot start from the identity; take gabor, gaussian or laplacian"
        )
    return Mosaic(rank, size, causal, kinds, 1.0 if kernel == "analytic" else share)


def parameters(
    kernel: str, rank: int, size: int, causal: bool, kinds: Sequence[str] = ("gabor",), share: float = 0.5
) -> int:
    """Learned numbers by the formulas above."""
    number = len(layout.taps(size, causal))
    if kernel == "plain":
        return rank * rank * number
    if kernel == "depthwise":
        return rank * number
    return count(assign(rank, kinds, 1.0 if kernel == "analytic" else share), size)
