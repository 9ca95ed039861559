"""What is no product in SwiGLU experts: by PyTorch's operators, or in one loop each way, compiled where it runs (swiglu.cpp).

With g and u the halves of the first product and w the router's weight: h = silu(g) u, the second product takes w h, and d is the gradient of w h over w.
Shapes: S token slots, M neurons, F = 2M.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.config import digest
from moesaic.errors import InputError

log = logging.getLogger("moesaic.model")

FLAGS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"),
}
"""By what PyTorch's own loops use here. Each has a build of its own: nodes of a cluster that share a home may differ."""


class Steps(NamedTuple):
    """One way of doing it."""

    inner: Callable[[Tensor, Tensor], Tensor]
    """Of the first product [S, F] and the weights [S]: w h [S, M]."""
    before: Callable[[Tensor, Tensor], tuple[Tensor, Any]]
    """Of the same: w h, and what `after` needs beside it."""
    after: Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Tensor]]
    """Of the same, d [S, M] (overwritten) and what `before` left: the gradients of the first product [S, F] and of the weights [S]."""


def _inner(gate_up_SF: Tensor, weight_S: Tensor) -> Tensor:
    gate_SM, up_SM = gate_up_SF.chunk(2, dim=1)
    return functional.silu(gate_SM).mul_(up_SM).mul_(weight_S[:, None])


def _before(gate_up_SF: Tensor, weight_S: Tensor) -> tuple[Tensor, Tensor]:
    gate_SM, up_SM = gate_up_SF.chunk(2, dim=1)
    grad_SF = torch.empty_like(gate_up_SF)
    active_SM, h_SM = grad_SF.chunk(2, dim=1)  # they wait where their gradients will stand
    torch.ops.aten.silu.out(gate_SM, out=active_SM)
    torch.mul(active_SM, up_SM, out=h_SM)
    return h_SM * weight_S[:, None], grad_SF


def _after(gate_up_SF: Tensor, weight_S: Tensor, d_SM: Tensor, grad_SF: Tensor) -> tuple[Tensor, Tensor]:
    gate_SM, up_SM = gate_up_SF.chunk(2, dim=1)
    active_SM, h_SM = grad_SF.chunk(2, dim=1)
    grad_S = torch.linalg.vecdot(d_SM, h_SM)
    d_SM.mul_(weight_S[:, None])
    torch.mul(d_SM, active_SM, out=h_SM)
    torch.ops.aten.silu_backward.grad_input(d_SM.mul_(up_SM), gate_SM, grad_input=active_SM)
    return grad_SF, grad_S


PLAIN = Steps(_inner, _before, _after)


@cache
def compiled() -> Steps:
    """Loops of our own, which pass over the memory once; silu' = s (1 + g (1 - s)), s the sigmoid of g.

    Compiled once for a kind of processor and a version of PyTorch, and kept where PyTorch keeps its extensions (TORCH_EXTENSIONS_DIR).

    Raises:
        InputError: no C++ compiler, or what PyTorch needs beside it is missing.
    """
    from torch.utils import cpp_extension

    source, capability = Path(__file__).with_suffix(".cpp"), torch.backends.cpu.get_cpu_capability()
    flags = ["-O3", f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    flags += FLAGS.get(capability, ())
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    kept = root / f"moesaic-swiglu-{digest([source.read_text(), flags, torch.__version__])[:16]}.so"
    if kept.exists():
        torch.ops.load_library(str(kept))
    else:
        began = time.monotonic()
        log.info("compiling the experts' loops for %s, once", capability)
        try:
            _build(source, flags, kept)
        except (RuntimeError, OSError) as error:
            reason = " / ".join(str(error).strip().splitlines()[-2:])
            raise InputError(
                f"engine.experts: sorted-compiled needs a C++ compiler (g++, or what CXX names) and ninja on the PATH: {reason}; use sorted"
            ) from error
        log.info("compiled in %.0f s: %s", time.monotonic() - began, kept)
    loops = torch.ops.moesaic_swiglu
    return Steps(
        loops.inner,
        lambda gate_up_SF, weight_S: (loops.inner(gate_up_SF, weight_S), None),
        lambda gate_up_SF, weight_S, d_SM, _: loops.gradients(gate_up_SF, weight_S, d_SM),
    )


def _build(source: Path, flags: list[str], kept: Path) -> None:
    """Compile and load, then keep. In a folder of this process: PyTorch's lock of a shared one outlives a killed process, and the next would wait for ever."""
    from torch.utils import cpp_extension

    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="moesaic-", dir=kept.parent) as folder:
        cpp_extension.load(
            name="moesaic_swiglu",
            sources=[str(source)],
            extra_cflags=flags,
            build_directory=folder,
            is_python_module=False,
        )
        (Path(folder) / "moesaic_swiglu.so").replace(kept)
