"""A conversion that was killed goes on from what is on disk, to the same bytes; a disk without room ends in a word."""

import errno
import json
import os
from pathlib import Path

import project
import pytest
import torch
from tiny import tiny_moe

from moesaic.errors import InputError
from moesaic.experts import construct, layer, stream, trace
from moesaic.flow import files

FITTED = {"split": "activation", "router": "least-squares", "reconstruct": "least-squares", "shared": 32}


def test_an_interrupted_conversion_goes_on_with_the_next_layer(tmp_path, monkeypatch):
    whole = tiny_moe(tmp_path / "whole", **FITTED) if (tmp_path / "whole").mkdir() is None else None
    right, converted = construct.Builder.add, []

    def add(self, index, *arguments):
        if index == 2 and len(converted) == 2:
            raise KeyboardInterrupt
        converted.append(index)
        return right(self, index, *arguments)

    monkeypatch.setattr(construct.Builder, "add", add)
    (tmp_path / "cut").mkdir()
    with pytest.raises(KeyboardInterrupt):
        tiny_moe(tmp_path / "cut", **FITTED)
    assert converted == [0, 1]
    assert not (tmp_path / "cut" / "moe" / "model").exists()
    converted.append(None)
    again = tiny_moe(tmp_path / "cut", **FITTED)
    assert converted == [0, 1, None, 2]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    audits = [json.loads((tmp_path / name / "moe" / "audit.json").read_text()) for name in ("whole", "cut")]
    assert audits[0] == audits[1]


def test_a_kill_before_a_layer_is_noted_goes_on_from_it(tmp_path, monkeypatch):
    whole = tiny_moe(tmp_path / "whole") if (tmp_path / "whole").mkdir() is None else None
    right, turns = stream.Stream.advance, []

    def advance(self):
        turns.append(1)
        if len(turns) == 2:
            raise KeyboardInterrupt
        right(self)

    monkeypatch.setattr(stream.Stream, "advance", advance)
    (tmp_path / "cut").mkdir()
    with pytest.raises(KeyboardInterrupt):
        tiny_moe(tmp_path / "cut")
    again = tiny_moe(tmp_path / "cut")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


@pytest.mark.parametrize("late", ["finish", "equivalence"])
def test_a_kill_after_the_last_layer_repeats_no_fit(tmp_path, monkeypatch, late):
    whole = tiny_moe(tmp_path / "whole", **FITTED) if (tmp_path / "whole").mkdir() is None else None
    (tmp_path / "cut").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(construct.Builder, late, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tiny_moe(tmp_path / "cut", **FITTED)
    for module, name in ((layer, "fit"), (trace, "attend"), (construct.Builder, "add")):
        monkeypatch.setattr(module, name, lambda *arguments: pytest.fail("this was done already"))
    again = tiny_moe(tmp_path / "cut", **FITTED)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    for name in ("assignment.parquet", "equivalence.json", "audit.json", "model/model.safetensors"):
        assert (tmp_path / "whole/moe" / name).read_bytes() == (tmp_path / "cut/moe" / name).read_bytes()


@pytest.mark.parametrize("lost", ["trace.bin", "moe-0.bin", "moe-1.bin"])
@pytest.mark.parametrize("cut", [None, 100])
def test_a_state_without_its_data_counts_for_nothing(tmp_path, monkeypatch, lost, cut):
    """Files that are gone, or cut short, are filled again, not read as zeros."""
    settings = {
        "split": "random",
        "router": "least-squares",
        "reconstruct": "least-squares",
        "compensate": 0.5,
        "shared": 32,
    }
    whole = tiny_moe(tmp_path / "whole", **settings) if (tmp_path / "whole").mkdir() is None else None
    (tmp_path / "cut").mkdir()
    right, done = construct.Builder.add, []

    def add(self, index, *arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(index)
        return right(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(construct.Builder, "add", add)
        with pytest.raises(KeyboardInterrupt):
            tiny_moe(tmp_path / "cut", **settings)
    path = tmp_path / "cut/work" / lost
    data = path.read_bytes()
    path.unlink()
    if cut is not None:
        path.write_bytes(data[:cut])
    again = tiny_moe(tmp_path / "cut", **settings)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_stream_is_removed_state_first(tmp_path, monkeypatch):
    removed, right = [], Path.unlink
    found = stream.Stream(tmp_path, "moe", (2, 3, 4))
    found.advance()
    monkeypatch.setattr(Path, "unlink", lambda self, **how: (removed.append(self.name), right(self, **how)))
    found.remove()
    assert removed == ["moe.json", "moe-0.bin", "moe-1.bin"]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_no_signal(tmp_path, monkeypatch):
    def fallocate(code):
        def call(*arguments):
            raise OSError(code, "no")

        return call

    monkeypatch.setattr(os, "posix_fallocate", fallocate(errno.ENOSPC))
    with pytest.raises(InputError, match=r"a\.bin: no room on the disk.*calibration\.tokens"):
        stream.mapped(tmp_path / "a.bin", (2, 3))
    assert not (tmp_path / "a.bin").exists()
    monkeypatch.setattr(os, "posix_fallocate", fallocate(errno.EOPNOTSUPP))
    assert stream.mapped(tmp_path / "a.bin", (2, 3)).shape == (2, 3)
    monkeypatch.undo()
    found = stream.mapped(tmp_path / "b.bin", (1000, 1000))
    assert (tmp_path / "b.bin").stat().st_blocks * 512 >= found.nbytes, "a sparse file"


def test_the_step_killed_before_its_manifest_fits_nothing_again(tmp_path, monkeypatch):
    path = project.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    for step in ("dense", "documents", "tokens"):
        project.run(path, step)
    out = Path("results/activation/construct")

    def killed(_model):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(construct.size, "count", killed)  # the model is written, its manifest is not
        with pytest.raises(KeyboardInterrupt):
            project.run(path, "construct", "activation")
    assert not (out / "manifest.json").exists()
    (left,) = (out / "work").glob("layers-*")
    before = files.sha256(out / "model/model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(layer, "fit", lambda *_: pytest.fail("fitted again"))
        project.run(path, "construct", "activation")
    assert (out / "manifest.json").exists()
    assert files.sha256(out / "model/model.safetensors") == before
    assert not left.exists()
