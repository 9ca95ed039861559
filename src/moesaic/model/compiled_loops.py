"""`expert_loops` in C++ (expert_loops.cpp), compiled once where they run."""

import logging
import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

from moesaic.config import digest
from moesaic.errors import InputError
from moesaic.model.expert_loops import Loops

log = logging.getLogger("moesaic.model")

SOURCE, HEADER = (Path(__file__).with_name(name) for name in ("expert_loops.cpp", "expert_parts.h"))
FLAGS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"),
}
"""By what PyTorch's own loops use here. Each has a build of its own: nodes of a cluster that share a home may differ."""


def _kept() -> tuple[Path, list[str]]:
    """The library of this machine's kind, there or not, and the compiler's flags for it."""
    capability = torch.backends.cpu.get_cpu_capability()
    flags = ["-O3", f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    flags += FLAGS.get(capability, ())
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(caches) / "torch_extensions")
    return (
        root
        / f"moesaic-experts-{digest([SOURCE.read_text(), HEADER.read_text(), flags, torch.__version__])[:16]}.so",
        flags,
    )


def at_hand() -> bool:
    """Whether they are compiled already, or the tools for it are on the PATH."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    return _kept()[0].exists() or all(shutil.which(tool) for tool in (compiler, "ninja"))


@cache
def loops() -> Loops:
    """An expert, or a part of one with many rows, is one thread's work from its gathered rows to what it adds to them, so that no thread waits for another within one.

    Compiled once for a kind of processor and a version of PyTorch, and kept in TORCH_EXTENSIONS_DIR (~/.cache/torch_extensions).

    Raises:
        InputError: no C++ compiler, or what PyTorch needs beside it is missing.
    """
    kept, flags = _kept()
    if kept.exists():
        torch.ops.load_library(str(kept))
    else:
        began = time.monotonic()
        log.info("compiling the experts' loops, once for this kind of machine")
        try:
            _build(flags, kept)
        except (RuntimeError, OSError) as error:
            reason = " / ".join(str(error).strip().splitlines()[-2:])
            raise InputError(
                f"engine.experts: sorted-compiled needs a C++ compiler (c++, or what CXX names) and ninja on the PATH: {reason}; use sorted"
            ) from error
        log.info("compiled in %.0f s: %s", time.monotonic() - began, kept)
    return Loops(torch.ops.moesaic_experts.forward, torch.ops.moesaic_experts.backward, None)


def _build(flags: list[str], kept: Path) -> None:
    """Compile and load, then keep. In a folder of this process: PyTorch's lock of a shared one outlives a killed process, and the next would wait for ever."""
    from torch.utils import cpp_extension

    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="moesaic-", dir=kept.parent) as folder:
        cpp_extension.load(
            name="moesaic_experts",
            sources=[str(SOURCE)],
            extra_cflags=flags,
            build_directory=folder,
            is_python_module=False,
        )
        (Path(folder) / "moesaic_experts.so").replace(kept)
