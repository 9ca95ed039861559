"""`expert_loops` in C++ (expert_loops.cpp), compiled once where they run."""

import logging
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from moesaic.config import digest
from moesaic.errors import InputError
from moesaic.model.expert_loops import Loops

log = logging.getLogger("moesaic.model")

_LOCK = threading.Lock()
PATIENCE = 600
"""Seconds to wait for another process that compiles."""
SOURCE, HEADER = (Path(__file__).with_name(name) for name in ("expert_loops.cpp", "expert_parts.h"))
FLAGS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"),
}
"""By what PyTorch's own loops use here. Each has a build of its own: nodes of a cluster that share a home may differ."""


def _kept() -> tuple[Path, list[str]]:
    """The library of this machine's kind, there or not, and the compiler's flags for it."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in FLAGS:
        capability = "DEFAULT"  # NEON on ARM
    flags = ["-O3", f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    flags += FLAGS.get(capability, ())
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if not root:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions")
    sources = [path.read_text() for path in (SOURCE, HEADER)]
    known = digest([*sources, flags, torch.__version__, platform.machine(), sys.platform])
    return Path(root) / f"moesaic-experts-{known[:16]}.so", flags


def at_hand() -> bool:
    """Whether they are compiled already, or the tools for it are on the PATH."""
    compiler = (os.environ.get("CXX") or "c++").split()[0]
    try:
        if _kept()[0].exists():
            return True
    except (OSError, RuntimeError):  # no home, or one that is somebody else's
        return False
    return all(shutil.which(tool) for tool in (compiler, "ninja"))


def loops() -> Loops:
    """An expert, or a part of one with many rows, is one thread's work from its gathered rows to what it adds to them, so that no thread waits for another within one.

    Compiled once for a kind of processor and a version of PyTorch, and kept in TORCH_EXTENSIONS_DIR (~/.cache/torch_extensions).

    Raises:
        InputError: no C++ compiler, what PyTorch needs beside it is missing, or there is no place to keep the library.
    """
    with _LOCK:  # a second copy of the library would end the process
        return _loops()


@cache
def _loops() -> Loops:
    try:
        kept, flags = _kept()
        if not (kept.exists() and _loads(kept)):
            began = time.monotonic()
            log.info("compiling the experts' loops, once for this kind of machine")
            _build(flags, kept)
            log.info("compiled in %.0f s: %s", time.monotonic() - began, kept)
    except (RuntimeError, OSError) as error:
        reason = " / ".join(str(error).strip().splitlines()[-2:])
        raise InputError(
            "engine.experts: sorted-compiled needs a C++ compiler (c++, or what CXX names) and ninja on the PATH, and a place for the library "
            f"(TORCH_EXTENSIONS_DIR): {reason}; use sorted"
        ) from error
    return Loops(torch.ops.moesaic_experts.forward, torch.ops.moesaic_experts.backward, None)


def _loads(kept: Path) -> bool:
    try:
        torch.ops.load_library(str(kept))
    except OSError as error:  # made on a machine with other libraries
        log.info("%s does not load here and is made again: %s", kept, error)
        return False
    return True


def _build(flags: list[str], kept: Path) -> None:
    """Compile and load, then keep. One process at a time, in a folder of its own: PyTorch's lock of a shared one outlives a killed process, and the next would wait for ever."""
    from torch.utils import cpp_extension

    kept.parent.mkdir(parents=True, exist_ok=True)
    before = kept.stat().st_mtime_ns if kept.exists() else None
    with FileLock(f"{kept}.lock", timeout=PATIENCE):
        if kept.exists() and kept.stat().st_mtime_ns != before:  # by another process, meanwhile
            torch.ops.load_library(str(kept))
            return
        for left in kept.parent.glob(f"{kept.stem}-*"):  # by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=f"{kept.stem}-", dir=kept.parent) as folder:
            # PyTorch numbers what one process builds
            built = cpp_extension.load(
                name="moesaic_experts",
                sources=[str(SOURCE)],
                extra_cflags=flags,
                build_directory=folder,
                is_python_module=False,
            )
            Path(built).replace(kept)
