"""Checkpoints: whole or absent, checked before use, damage named."""

import json

import pytest
import torch

from moesaic.errors import InputError
from moesaic.train import checkpoint


def save(folder, step, keep=2):
    tensors = {"weights": {"w": torch.full((3,), float(step))}, "rng": checkpoint.rng_state()}
    return checkpoint.save(folder, step, tensors, {"step": step, "x": 0.1}, keep)


def test_round_trip_and_pruning(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-00000002", "step-00000003"]
    newest = checkpoint.latest(tmp_path)
    assert checkpoint.load_state(newest) == {"step": 3, "x": 0.1}
    assert checkpoint.load_tensors(newest, "weights")["w"].tolist() == [3, 3, 3]


def test_random_state_round_trip(tmp_path):
    torch.manual_seed(5)
    path = save(tmp_path, 1)
    expected = torch.rand(4)
    checkpoint.set_rng_state(checkpoint.load_tensors(path, "rng"))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "index"])
def test_damage_is_named_with_the_remedy(tmp_path, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    file = path / "weights.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    else:
        (path / "checkpoint.json").write_text("{")
    with pytest.raises(InputError, match=r"step-00000002.*delete .*step-00000002"):
        checkpoint.load_state(checkpoint.latest(tmp_path))


def test_one_set_of_other_settings_waits_beside(tmp_path):
    folder = tmp_path / "checkpoints"

    def saved(identity, step):
        checkpoint.save(
            folder, step, {"rng": checkpoint.rng_state()}, {"step": step, "identity": identity}, 2
        )

    assert checkpoint.choose(folder, "a" * 64, []) is None
    saved("a" * 64, 3)
    assert checkpoint.choose(folder, "a" * 64, []) is None
    assert checkpoint.choose(folder, "b" * 64, []) == 3
    saved("b" * 64, 5)
    assert checkpoint.choose(folder, "c" * 64, []) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints-" + "b" * 16], "the newest set alone"
    assert checkpoint.choose(folder, "b" * 64, []) is None
    assert [path.name for path in checkpoint.steps(folder)] == ["step-00000005"]
    (folder / "step-00000005" / "state.json").write_text("{")
    assert checkpoint.choose(folder, "c" * 64, []) is None, "damage is told when it is loaded"
    saved("c" * 64, 7)
    checkpoint.choose(folder, "d" * 64, [])
    checkpoint.clear(folder)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_save_are_ignored(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp-9").mkdir()
    assert checkpoint.latest(tmp_path).name == "step-00000001", "each rank looks, one of them cleans"
    checkpoint.remove_leftovers(tmp_path)
    checkpoint.remove_leftovers(tmp_path / "nothing here")
    assert not list(tmp_path.glob(".step*"))


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: type("U", (), {"free": 10})())
    with pytest.raises(InputError, match="no room on the disk"):
        save(tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_nothing_to_unpickle(tmp_path):
    path = save(tmp_path, 1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "checkpoint.json").read_text())["step"] == 1


def test_writing_goes_on_beside_and_keeps_what_was_there_when_it_began(tmp_path):
    writer = checkpoint.Writer(tmp_path, keep=1, keep_every=4)
    value = torch.zeros(1000)
    for step in range(1, 7):
        value.fill_(step)
        writer.save(step, {"weights": {"w": value}}, {"step": step})
        value.fill_(-1.0)  # training goes on at once
    writer.wait()
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-00000004", "step-00000006"]
    assert checkpoint.load_tensors(checkpoint.latest(tmp_path), "weights")["w"].unique().tolist() == [6.0]


def test_what_a_save_in_the_background_met_is_not_lost(tmp_path, monkeypatch):
    writer = checkpoint.Writer(tmp_path, keep=1)

    def full(*_arguments, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    writer.save(1, {"weights": {"w": torch.zeros(3)}}, {"step": 1})
    with pytest.raises(OSError, match="No space"):
        writer.save(2, {"weights": {"w": torch.zeros(3)}}, {"step": 2})
