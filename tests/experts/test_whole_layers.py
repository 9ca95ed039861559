"""Layers left dense by number: the costliest by autograd, the same files as when they are listed, exact after an interruption."""

import json

import pytest
import torch
from tiny import loss_changes, tiny_llama, tiny_moe, tiny_text

from moesaic.errors import InputError
from moesaic.experts import trace, walk, whole_layers
from moesaic.model import families

FITTED = {
    "shared": 32, "split": "activation", "router": "least-squares", "reconstruct": "least-squares",
    "calibration": {"clusters": "domain", "gradient_tokens": 10**6},
}  # fmt: skip


def costs_by_autograd(model, text, shared):
    """The same sum from the ordinary model."""
    found = [torch.zeros(96) for _ in model.model.layers]
    for _, layer, change_TF in loss_changes(model, text):
        found[layer] += change_TF.square().sum(0)
    tokens = text.fitted * text.ids_NT.shape[1]
    return [float(item.sort().values[: 96 - shared].sum()) / tokens for item in found]


def test_the_costliest_layers_stay_dense(tmp_path):
    text = tiny_text()
    for seed in range(3):
        folder = tmp_path / str(seed)
        made = tiny_moe(folder, tiny_llama(seed), text, dense_layers=1, **FITTED)
        expected = costs_by_autograd(tiny_llama(seed), text, 32)
        found = json.loads((folder / "moe/audit.json").read_text())["costs"]
        assert found == pytest.approx(expected, rel=1e-3)
        (kept,) = made.dense_layers
        assert kept == max(range(3), key=lambda layer: expected[layer])
        assert [part.layer for part in families.parts(made.model)] == [i for i in range(3) if i != kept]
        assert made.model.config.mlp_only_layers == [kept]


FEW = {"clusters": "domain", "gradient_tokens": 64}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"split": "random"},
        {"calibration": FEW},
        {"split": "coactivation", "calibration": FEW},
        {"activation": {"shared_by": "rate"}, "calibration": FEW},
    ],
)
def test_a_number_equals_the_list_it_chose(tmp_path, changes):
    settings = FITTED | changes
    counted = tiny_moe(tmp_path / "a", dense_layers=2, **settings)
    listed = tiny_moe(tmp_path / "b", dense_layers=list(counted.dense_layers), **settings)
    assert len(counted.dense_layers) == 2
    for (name, one), two in zip(
        counted.model.state_dict().items(), listed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    for name in ("assignment.parquet", "equivalence.json"):
        assert (tmp_path / "a/moe" / name).read_bytes() == (tmp_path / "b/moe" / name).read_bytes()


def test_interrupted_it_chooses_the_same(tmp_path, monkeypatch):
    whole = tiny_moe(tmp_path / "whole", dense_layers=1, **FITTED)
    with monkeypatch.context() as patch:
        patch.setattr(walk, "run", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tiny_moe(tmp_path / "half", dense_layers=1, **FITTED)
    measured = whole_layers.choose(tmp_path / "half/work", 3, 1)
    assert measured[0] == whole.dense_layers
    with monkeypatch.context() as patch:
        patch.setattr(
            whole_layers, "record", lambda *arguments: pytest.fail("the layers were measured already")
        )
        again = tiny_moe(tmp_path / "half", dense_layers=1, **FITTED)
    assert again.dense_layers == whole.dense_layers
    for one, two in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_what_only_first_layers_could_be_is_refused_before_anything_runs(tmp_path, monkeypatch):
    """Heads that do not divide the width leave glm4_moe alone, whose dense layers are the first; which ones they will be is not known yet."""
    monkeypatch.setattr(trace.Trace, "run", lambda _self: pytest.fail("too late"))
    settings = FITTED | {"dense_layers": 1, "experts": 8}
    with pytest.raises(InputError, match="glm4_moe: only its first layers can be dense"):
        tiny_moe(tmp_path, tiny_llama(head_dim=16), **settings)


def test_ties_go_to_the_first_layers(tmp_path):
    for layer, cost in enumerate([1.0, 3.0, 3.0, 0.5]):
        whole_layers.record(tmp_path, layer, torch.tensor([9.0, cost / 2, cost / 2]), 1)
    assert whole_layers.choose(tmp_path, 4, 1) == ((1,), [1.0, 3.0, 3.0, 0.5])
    assert whole_layers.choose(tmp_path, 4, 2)[0] == (1, 2)
    assert whole_layers.choose(tmp_path, 4, 3)[0] == (0, 1, 2)
