"""Laplacian of a Gaussian: a round blob with a rim of the other sign.

    f(x, y) = a (1 - q) exp(-q),  q = (x^2 + y^2) / (2 s^2),  s > 0.3 taps

The usual factor -1 / (pi s^4) is left out: with it a kernel's size would hang on its width (and the amplitude could not say what it is).
Source: D. Marr, E. Hildreth, Proc. R. Soc. B 207 (1980) 187.
"""

import torch
from torch import Tensor

from moesaic.model.adapters.functions.base import Function, each, grid, uniform, unwide, wide

NAMES = ("amplitude", "scale")


def values(raw_NP: Tensor, size: int) -> Tensor:
    """Kernels [N, k, k]."""
    amplitude, scale = constrain(raw_NP).unbind(1)
    x_kk, y_kk = grid(size, raw_NP)
    q = (x_kk**2 + y_kk**2) / (2 * each(scale) ** 2)
    return each(amplitude) * (1 - q) * torch.exp(-q)


def constrain(raw_NP: Tensor) -> Tensor:
    """Raw -> parameters [N, 2]."""
    amplitude, scale = raw_NP.unbind(1)
    return torch.stack([amplitude, wide(scale)], 1)


def release(parameters_NP: Tensor) -> Tensor:
    """Parameters -> raw [N, 2]."""
    amplitude, scale = parameters_NP.unbind(1)
    return torch.stack([amplitude, unwide(scale)], 1)


def draw(count: int, size: int, random: torch.Generator) -> Tensor:
    """Blobs of different widths [N, 2]."""
    scale = torch.clamp_min(uniform(count, 0.12, 0.35, random) * size, 0.4)
    return torch.stack([torch.ones_like(scale), scale], 1)


FUNCTION = Function(NAMES, values, constrain, release, draw)
