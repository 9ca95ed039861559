"""Gabor: a plane wave under an elliptic Gaussian; edges, bars and gratings of one orientation and frequency.

    f(x, y) = a exp(-(x'^2 + g^2 y'^2) / (2 s^2)) cos(2 pi x' / l + p),  x' = x cos t + y sin t,  y' = -x sin t + y cos t

Source: J. G. Daugman, J. Opt. Soc. Am. A 2 (1985) 1160; as a learned kernel of a layer: Cui et al., arXiv 2407.06087, whose own
parametrisation was not to be seen, so the ranges are ours: s > 0.3 taps, g > 0, l > 2 taps.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.model.adapters.functions.base import (
    SHORTEST,
    Function,
    angles,
    each,
    turned,
    uniform,
    unsoftplus,
    unwide,
    wide,
)  # fmt: skip

NAMES = ("amplitude", "scale", "aspect", "angle", "wavelength", "phase")


def values(raw_NP: Tensor, size: int) -> Tensor:
    """Kernels [N, k, k]."""
    amplitude, scale, aspect, angle, wavelength, phase = constrain(raw_NP).unbind(1)
    along, across = turned(angle, size)
    envelope = torch.exp(-(along**2 + (each(aspect) * across) ** 2) / (2 * each(scale) ** 2))
    return each(amplitude) * envelope * torch.cos(2 * math.pi * along / each(wavelength) + each(phase))


def constrain(raw_NP: Tensor) -> Tensor:
    """Raw -> parameters [N, 6]."""
    amplitude, scale, aspect, angle, wavelength, phase = raw_NP.unbind(1)
    wavelength = SHORTEST + functional.softplus(wavelength)
    return torch.stack([amplitude, wide(scale), functional.softplus(aspect), angle, wavelength, phase], 1)


def release(parameters_NP: Tensor) -> Tensor:
    """Parameters -> raw [N, 6]."""
    amplitude, scale, aspect, angle, wavelength, phase = parameters_NP.unbind(1)
    wavelength = unsoftplus(wavelength - SHORTEST)
    return torch.stack([amplitude, unwide(scale), unsoftplus(aspect), angle, wavelength, phase], 1)


def draw(count: int, size: int, random: torch.Generator) -> Tensor:
    """Waves of all orientations and phases, half a period to two in the kernel [N, 6]."""
    scale = uniform(count, 0.2, 0.4, random) * size
    wavelength = SHORTEST + uniform(count, 0.2, 1.0, random) * size
    phase = uniform(count, -math.pi, math.pi, random)
    aspect = uniform(count, 0.5, 1.5, random)
    return torch.stack([torch.ones_like(scale), scale, aspect, angles(count, random), wavelength, phase], 1)


FUNCTION = Function(NAMES, values, constrain, release, draw)
