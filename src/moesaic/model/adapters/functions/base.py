"""What the kernel functions share: the tap grid, rotation, and the maps that keep a parameter in its range.

Shapes: N kernels, P raw parameters of a kernel, k taps on a side. Lengths are in taps, angles in radians.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

NARROWEST = 0.3
"""Smallest scale of an envelope: at 0.3 taps the next tap has exp(-1 / 0.18) = 0.004 of the centre, a single tap to the eye."""
SHORTEST = 2.0
"""Shortest wavelength: two taps, beyond which a wave on the grid cannot be told from a longer one (Nyquist)."""


@dataclass(frozen=True)
class Function:
    """A family of kernels."""

    names: tuple[str, ...]
    """The P parameters, `amplitude` first: the value is linear in it."""
    values: Callable[[Tensor, int], Tensor]
    """(raw parameters [N, P], k) -> kernels [N, k, k]."""
    constrain: Callable[[Tensor], Tensor]
    """Raw parameters [N, P], any real numbers -> parameters in their ranges and units [N, P]."""
    release: Callable[[Tensor], Tensor]
    """The inverse of `constrain`."""
    draw: Callable[[int, int, torch.Generator], Tensor]
    """(N, k, random numbers) -> parameters [N, P] that make a varied start, of amplitude 1."""


def grid(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Column x and row y of each tap, counted from the centre [k, k]."""
    line = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    y_kk, x_kk = torch.meshgrid(line, line, indexing="ij")
    return x_kk, y_kk


def turned(angle_N: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The tap grid in axes turned by each angle: (along, across), [N, k, k] each."""
    x_kk, y_kk = grid(size, angle_N)
    cos, sin = (f(angle_N)[:, None, None] for f in (torch.cos, torch.sin))
    return x_kk * cos + y_kk * sin, y_kk * cos - x_kk * sin


def wide(raw: Tensor) -> Tensor:
    """Any number -> a scale above NARROWEST."""
    return functional.softplus(raw) + NARROWEST


def unwide(scale: Tensor) -> Tensor:
    """The inverse of `wide`."""
    return unsoftplus(scale - NARROWEST)


def unsoftplus(value: Tensor) -> Tensor:
    """The inverse of softplus; values below 1e-6 count as 1e-6."""
    value = value.clamp_min(1e-6)
    return value + torch.log(-torch.expm1(-value))


def each(value_N: Tensor) -> Tensor:
    """One number per kernel, to be spread over its taps."""
    return value_N[:, None, None]


def uniform(count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    """Float64 numbers [N] between two bounds."""
    return low + (high - low) * torch.rand(count, generator=random, dtype=torch.float64)


def angles(count: int, random: torch.Generator) -> Tensor:
    """Half a turn in even steps from a random first one, in random order: no two kernels start alike."""
    first = torch.rand(1, generator=random, dtype=torch.float64)
    order = torch.randperm(count, generator=random)
    return ((order + first) / max(1, count) * math.pi) % math.pi
