"""The experts' loops in C++ against those in Python: any sizes, strides and threads, failures, and how they are compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiling import compiler
from tiny import tiny_moe

from moesaic.errors import InputError
from moesaic.model import compiled_loops, execution
from moesaic.model.expert_loops import PLAIN


def case(neurons, experts=4, tokens=250, width=20):
    """What the loops take, in float64: experts of very different numbers of tokens, and the output's gradient."""
    stream = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    liked = torch.rand(tokens, experts, generator=stream) * torch.arange(1.0, experts + 1)
    index_TK = liked.topk(2).indices
    order_S = index_TK.flatten().argsort(stable=True).to(torch.int32)
    counts = torch.bincount(index_TK.flatten(), minlength=experts).tolist()
    given = [random(tokens, width), random(experts, 2 * neurons, width), random(experts, width, neurons)]
    return [*given, random(len(order_S)), order_S // 2, counts], random(tokens, width)


def ahead_and_back(loops, given, slope, wants=(True, True, True)):
    out, both = loops.forward(*given)
    return [out, both, *loops.backward(slope, *given, both, *wants)]


def to(items, dtype):
    """Tensors of floating point in another type."""
    return [
        item.to(dtype) if isinstance(item, torch.Tensor) and item.is_floating_point() else item
        for item in items
    ]


@compiler
@pytest.mark.parametrize("neurons", [1, 7, 8, 96, 33])
def test_compiled_loops_equal_the_plain_ones_for_any_number_of_neurons(neurons):
    given, slope = case(neurons)
    given[0][:3] *= 200  # gates beyond what exp can hold
    wanted = ahead_and_back(PLAIN, given, slope)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = ahead_and_back(compiled_loops.loops(), to(given, dtype), slope.to(dtype))
        for own, plain_one in zip(found, wanted, strict=True):
            assert own.isfinite().all()
            error = (own.double() - plain_one).abs().max() / plain_one.abs().max()
            assert error < tolerance


@compiler
@pytest.mark.parametrize(
    "wants", [(False, True, True), (True, False, True), (True, True, False), (False,) * 3]
)
def test_compiled_loops_make_the_gradients_that_are_wanted(wants):
    given, slope = case(5)
    whole = ahead_and_back(compiled_loops.loops(), given, slope)
    found = ahead_and_back(compiled_loops.loops(), given, slope, wants)
    for own, wanted, reference in zip(found, (True, True, *wants, True), whole, strict=True):
        assert torch.equal(own, reference) if wanted else own is None


THREADS = """
import sys, torch
from test_compiled_loops import ahead_and_back, case, to
from moesaic.model import compiled_loops
torch.set_num_threads(int(sys.argv[1]))
given, slope = case(16, experts=int(sys.argv[3]), tokens=3000, width=32)
found = [ahead_and_back(compiled_loops.loops(), to(given, torch.float32), slope.float()) for _ in range(5)]
assert all(torch.equal(*pair) for other in found for pair in zip(found[0], other, strict=True))
torch.save(found[0], sys.argv[2])
"""


@compiler
@pytest.mark.parametrize("experts", [16, 3])
def test_compiled_loops_compute_the_same_with_any_number_of_threads(experts, tmp_path):
    """16 experts: each one thread's work; 3, one of which has more tokens than a thread's share: in parts. More rows than one product takes."""
    for threads in (1, 2, 3):
        subprocess.run(
            [sys.executable, "-c", THREADS, str(threads), tmp_path / str(threads), str(experts)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
            check=True,
        )
    one, two, three = (torch.load(tmp_path / str(threads)) for threads in (1, 2, 3))
    for expected, *others in zip(one, two, three, strict=True):
        for own in others:
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@compiler
def test_compiled_loops_run_in_inference_mode():
    """Threads beside this one are not in it."""
    given, _ = case(16, experts=16)
    expected = compiled_loops.loops().forward(*given)
    with torch.inference_mode():
        found = compiled_loops.loops().forward(
            *[item.clone() if isinstance(item, torch.Tensor) else item for item in given]
        )
    for own, wanted in zip(found, expected, strict=True):
        assert own.is_inference()
        assert torch.equal(own, wanted)


@compiler
def test_a_failure_in_a_thread_ends_all_of_them():
    given, _ = case(16, experts=16, tokens=3000)
    of_two_types = to(given, torch.float32)
    of_two_types[2] = given[2]  # a product fails, on every thread
    with pytest.raises(RuntimeError, match="dtype"):
        compiled_loops.loops().forward(*of_two_types)


@compiler
def test_compiled_loops_need_a_compiler_and_leave_nothing_half_made(caplog, tmp_path, monkeypatch):
    moe = tiny_moe(tmp_path / "moe", shared=32).model
    caplog.set_level("INFO")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    cpu = torch.device("cpu")
    compiled_loops._loops.cache_clear()
    with monkeypatch.context() as without:
        without.setenv("CXX", "/no/compiler")
        with pytest.raises(
            InputError, match=r"engine\.experts: sorted-compiled needs a C\+\+ compiler .*use sorted"
        ):
            execution.apply(moe, "sorted-compiled", cpu)
        execution._compiled.cache_clear()
        assert not compiled_loops.at_hand()
        without.setattr(compiled_loops, "at_hand", lambda: True)  # it is there and fails
        for _ in range(2):
            assert execution.apply(moe, "auto", cpu) == "sorted"
        assert caplog.text.count("experts run without compiled loops (engine.experts: auto)") == 1
    execution._compiled.cache_clear()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"], "nothing half made stays"


COMPILE = """
import logging, os, sys
from moesaic.errors import InputError
from moesaic.model import compiled_loops
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
if sys.argv[1] == "damaged":
    compiled_loops._kept()[0].write_text("no library")
    os.environ["CXX"] = "/no/compiler"
    try:
        compiled_loops.loops()
    except InputError:
        del os.environ["CXX"]
compiled_loops.loops()
"""


@compiler
def test_loops_are_compiled_once_for_all_processes(tmp_path):
    """Also where the library that is there does not load, and after a build that failed in the same process."""
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    (tmp_path / "moesaic-experts-other").mkdir()
    said = [
        subprocess.run([sys.executable, "-c", COMPILE, state], env=environment, check=True, capture_output=True, text=True).stdout
        for state in ("damaged", "whole")
    ]  # fmt: skip
    assert said[0].count("compiled in") == 1
    assert "does not load here and is made again" in said[0]
    assert "compil" not in said[1]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock", ".so"], (
        "another kind's folder is let alone"
    )


def test_compiled_loops_are_not_at_hand_without_a_home(monkeypatch):
    monkeypatch.setenv("CXX", "")
    assert isinstance(compiled_loops.at_hand(), bool)
    for name in ("TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert not compiled_loops.at_hand()
    compiled_loops._loops.cache_clear()
    with pytest.raises(
        InputError, match=r"a place for the library \(TORCH_EXTENSIONS_DIR\): Could not determine home"
    ):
        compiled_loops.loops()


@compiler
def test_compiled_loops_take_any_strides():
    given, slope = case(5)
    expected = ahead_and_back(compiled_loops.loops(), given, slope[:1].expand_as(slope).contiguous())
    strided = [item.mT.contiguous().mT for item in given[:3]]
    found = ahead_and_back(compiled_loops.loops(), [*strided, *given[3:]], slope[:1].expand_as(slope))
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)
