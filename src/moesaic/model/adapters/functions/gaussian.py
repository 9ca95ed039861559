"""Anisotropic Gaussian: a smoothing of one width along an axis and another across it.

f(x, y) = a exp(-x'^2 / (2 u^2) - y'^2 / (2 v^2)),  u, v > 0.3 taps, axes turned by t
"""

import torch
from torch import Tensor

from moesaic.model.adapters.functions.base import Function, angles, each, turned, uniform, unwide, wide

NAMES = ("amplitude", "along", "across", "angle")


def values(raw_NP: Tensor, size: int) -> Tensor:
    """Kernels [N, k, k]."""
    amplitude, along, across, angle = constrain(raw_NP).unbind(1)
    x, y = turned(angle, size)
    return each(amplitude) * torch.exp(-(x**2) / (2 * each(along) ** 2) - y**2 / (2 * each(across) ** 2))


def constrain(raw_NP: Tensor) -> Tensor:
    """Raw -> parameters [N, 4]."""
    amplitude, along, across, angle = raw_NP.unbind(1)
    return torch.stack([amplitude, wide(along), wide(across), angle], 1)


def release(parameters_NP: Tensor) -> Tensor:
    """Parameters -> raw [N, 4]."""
    amplitude, along, across, angle = parameters_NP.unbind(1)
    return torch.stack([amplitude, unwide(along), unwide(across), angle], 1)


def draw(count: int, size: int, random: torch.Generator) -> Tensor:
    """Ellipses of all orientations [N, 4]."""
    along, across = uniform(count, 0.15, 0.4, random) * size, uniform(count, 0.1, 0.25, random) * size
    least = torch.full_like(along, 0.4)
    along, across = torch.maximum(along, least), torch.maximum(across, least)
    return torch.stack([torch.ones_like(along), along, across, angles(count, random)], 1)


FUNCTION = Function(NAMES, values, constrain, release, draw)
