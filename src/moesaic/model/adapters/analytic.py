"""Analytic convolution: kernels that are the values of a function with a few learned parameters, alone or among free kernels (a mosaic).

    w_n[i, j] = f(x_j, y_i; theta_n) on the centred tap grid, theta_n learned;  saved per kernel: k^2 / P (Gabor: 25 / 6 at k = 5)

Source of the idea: Cui et al., arXiv 2407.06087 ("analytic convolutional layer"). Of the paper only the abstract could be read, so functions,
ranges, start values and the way a mosaic is laid are ours.

Shapes: N kernels, P raw parameters of one, k taps on a side, B images, I and O channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.model.adapters.functions import METHODS

FREE = "free"
"""The kind of a kernel whose taps are learned one by one."""


def assign(count: int, kinds: Sequence[str], share: float) -> list[str]:
    """The kind of each of `count` kernels: a share of them analytic, spread evenly, the kinds in turn.

    Raises:
        InputError: an unknown kind, no kind at all, or a share outside 0..1.
    """
    if not kinds or not 0.0 <= share <= 1.0:
        raise InputError(
            f"kinds {list(kinds)}, share {share}: give at least one kind and a share between 0 and 1"
        )
    for kind in kinds:
        if kind not in METHODS:
            raise InputError(f"kinds: no kernel function '{kind}'; allowed: {', '.join(METHODS)}")
    wanted = round(share * count)
    found, given = [], 0
    for i in range(count):
        if (i + 1) * wanted // count > given:  # Bresenham's line: even gaps
            found.append(kinds[given % len(kinds)])
            given += 1
        else:
            found.append(FREE)
    return found


class Bank(nn.Module):
    """N kernels k x k, each analytic or free, in the order of `kinds`."""

    where: dict[str, Tensor]

    def __init__(self, kinds: Sequence[str], size: int, seed: int | None = None):
        """Args: kinds: of each kernel; seed: of the start values (None: from torch's own generator)."""
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise InputError(
                f"size: {size} taps; a kernel needs an odd number of taps, so that it has a centre"
            )
        self.kinds, self.size = tuple(kinds), size
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        random = torch.Generator().manual_seed(seed)
        self.raw = nn.ParameterDict()
        """Kind -> raw parameters [n, P], or taps [n, k, k] of the free ones."""
        for kind in sorted(set(self.kinds)):
            rows = torch.tensor([i for i, found in enumerate(self.kinds) if found == kind])
            self.register_buffer(f"rows_{kind}", rows, persistent=False)
            if kind == FREE:
                start = torch.randn(len(rows), size, size, generator=random)
            else:
                function = METHODS[kind]
                parameters = function.draw(len(rows), size, random)
                sign = torch.randint(0, 2, (len(rows),), generator=random) * 2 - 1
                parameters[:, 0] *= sign
                start = function.release(parameters).float()
            self.raw[kind] = nn.Parameter(start)

    def forward(self) -> Tensor:
        """The kernels [N, k, k]."""
        parts = []
        for kind, raw in self.raw.items():
            values = raw if kind == FREE else METHODS[kind].values(raw, self.size)
            parts.append((getattr(self, f"rows_{kind}"), values))
        first = parts[0][1]
        bank_Nkk = first.new_zeros(len(self.kinds), self.size, self.size)
        for rows, values in parts:
            bank_Nkk = bank_Nkk.index_copy(0, rows, values)
        return bank_Nkk

    @torch.no_grad()
    def rescale(self, std: float) -> None:
        """Give every kernel the root mean square `std` by its amplitude, so that analytic and free ones start alike."""
        for kind, raw in self.raw.items():
            values = raw if kind == FREE else METHODS[kind].values(raw, self.size)
            factor_n = std / values.square().mean(dim=(1, 2)).sqrt().clamp_min(1e-12)
            if kind == FREE:
                raw.mul_(factor_n[:, None, None])
            else:
                raw[:, 0] *= factor_n

    def table(self) -> list[dict[str, Any]]:
        """One row per kernel: its number, its kind and its parameters in units a reader knows (taps, radians)."""
        rows: list[dict[str, Any]] = [{"kernel": i, "kind": kind} for i, kind in enumerate(self.kinds)]
        for kind, raw in self.raw.items():
            if kind == FREE:
                continue
            function = METHODS[kind]
            values = function.constrain(raw.detach()).tolist()
            for place, found in zip(getattr(self, f"rows_{kind}").tolist(), values, strict=True):
                rows[place] |= dict(zip(function.names, found, strict=True))
        return rows


class AnalyticConv2d(nn.Module):
    """A two-dimensional convolution whose kernels are analytic; with `share` below 1 a mosaic. For any image model."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        kinds: Sequence[str] = ("gabor",),
        share: float = 1.0,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        seed: int | None = None,
    ):
        """Args: kinds: functions, given to the analytic kernels in turn; share: of the O x I kernels that are analytic."""
        super().__init__()
        self.shape = (channels_out, channels_in)
        self.stride, self.padding = stride, padding
        self.bank = Bank(assign(channels_out * channels_in, kinds, share), size, seed)
        # the root mean square of nn.Conv2d's own start, U(-b, b) with b = 1 / sqrt(I k^2)
        fan = channels_in * size * size
        self.bank.rescale((3 * fan) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The kernels as nn.Conv2d has them [O, I, k, k]."""
        return self.bank().unflatten(0, self.shape)

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """[B, I, H, W] -> [B, O, H', W']."""
        return functional.conv2d(x_BIHW, self.weight, self.bias, self.stride, self.padding)

    def plain(self) -> nn.Conv2d:
        """The same layer as an ordinary nn.Conv2d, for export."""
        out, channels = self.shape
        made = nn.Conv2d(channels, out, self.bank.size, self.stride, self.padding, bias=self.bias is not None)
        with torch.no_grad():
            made.weight.copy_(self.weight)
            if self.bias is not None and made.bias is not None:
                made.bias.copy_(self.bias)
        return made


def count(kinds: Sequence[str], size: int) -> int:
    """Learned numbers of a bank: P of each analytic kernel, k^2 of each free one."""
    return sum(size * size if kind == FREE else len(METHODS[kind].names) for kind in kinds)
