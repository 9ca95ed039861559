"""Grouped matrix products of experts in the precision of autocast.

torch leaves `grouped_mm` out of autocast (pytorch issue 174763): with float32 weights and mixed precision, the experts' products stay float32, for
which CUDA has no grouped kernel, so they run one expert after the other. Here autocast casts both operands, as it does for every other matrix product.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

OPERATOR = "_grouped_mm"
KEYS = {"AutocastCUDA": "cuda", "AutocastCPU": "cpu"}

_library: torch.library.Library | None = None
_active = True


def register() -> None:
    """Make autocast know `grouped_mm` in this process; once, and not where torch knows it by itself."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    for key, device in KEYS.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{OPERATOR}", key):
            _library.impl(OPERATOR, functools.partial(_cast, device), key)


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Without it for a while, to compare."""
    global _active
    before, _active = _active, False
    try:
        yield
    finally:
        _active = before


def _cast(
    device: str,
    x_SD: Tensor,
    weight_EDF: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The product of what autocast makes of the operands; other than floating point stays."""
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        if _active and x_SD.is_floating_point() and weight_EDF.is_floating_point():
            x_SD, weight_EDF = x_SD.to(dtype), weight_EDF.to(dtype)
        return torch._grouped_mm(x_SD, weight_EDF, offs=offs, bias=bias, out_dtype=out_dtype)
