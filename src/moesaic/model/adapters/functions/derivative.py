"""Derivative of an anisotropic Gaussian along one of its axes: an edge detector of one orientation.

    f(x, y) = -a (x' / u) exp(-x'^2 / (2 u^2) - y'^2 / (2 v^2)),  u, v > 0.3 taps, axes turned by t

u times the derivative, so that the amplitude says how large the kernel is, whatever its width.
"""

import math

import torch
from torch import Tensor

from moesaic.model.adapters.functions import gaussian
from moesaic.model.adapters.functions.base import Function, each, turned

NAMES = gaussian.NAMES


def values(raw_NP: Tensor, size: int) -> Tensor:
    """Kernels [N, k, k]."""
    amplitude, along, across, angle = constrain(raw_NP).unbind(1)
    x, y = turned(angle, size)
    bell = torch.exp(-(x**2) / (2 * each(along) ** 2) - y**2 / (2 * each(across) ** 2))
    return -each(amplitude) * x / each(along) * bell


constrain, release = gaussian.constrain, gaussian.release


def draw(count: int, size: int, random: torch.Generator) -> Tensor:
    """Edges of all orientations, half of them dark to bright [N, 4]."""
    found = gaussian.draw(count, size, random)
    turn = torch.randint(0, 2, (count,), generator=random)
    found[:, 3] += math.pi * turn
    return found


FUNCTION = Function(NAMES, values, constrain, release, draw)
