"""Students: exact sizes, the neurons that matter stay, what does not fit is refused."""

import numpy as np
import pytest
import torch
from tiny import tiny_llama, tiny_moe

from moesaic.distill import students
from moesaic.errors import InputError
from moesaic.model import load
from moesaic.schema import Student
from moesaic.train.streams import Row


class Rows:
    """Two domains of random rows."""

    def __init__(self):
        self.sizes = {"a": 3, "b": 2}

    def rows(self, samples):
        draw = {"a": 1, "b": 2}
        ids = [np.random.default_rng([draw[s.domain], s.row]).integers(3, 512, 24) for s in samples]
        return [Row(row, np.append(row[1:], -100)) for row in ids]


def student(model, **settings):
    return students.make(model, Student(**settings).model_dump(mode="json"), Rows())


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 35)[None], use_cache=False).logits


def test_a_narrower_student_has_exactly_the_width_and_loads_in_transformers(tmp_path):
    made = student(tiny_llama(), of="dense", ffn=40)
    for layer in made.model.layers:
        assert layer.mlp.gate_proj.weight.shape == layer.mlp.up_proj.weight.shape == (40, 48)
        assert layer.mlp.down_proj.weight.shape == (48, 40)
    made.save_pretrained(tmp_path)
    again = load.load_model(tmp_path)
    assert again.config.intermediate_size == 40
    torch.testing.assert_close(logits(again), logits(made))


def test_neurons_that_write_nothing_go_first():
    """Half of each layer's neurons are switched off by one of their three matrices: pruning to the other half changes nothing."""
    dense = tiny_llama()
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for layer, part in zip(dense.model.layers, ("gate_proj", "up_proj", "down_proj"), strict=True):
            dead = torch.from_numpy(draw.permutation(96)[:48])
            if part == "down_proj":
                layer.mlp.down_proj.weight[:, dead] = 0.0
            else:
                getattr(layer.mlp, part).weight[dead] = 0.0
    before = logits(dense)
    torch.testing.assert_close(logits(student(dense, of="dense", ffn=48)), before, atol=1e-4, rtol=1e-4)


def test_pruning_by_contribution_is_better_than_pruning_the_first_or_the_last():
    def error(keep):
        dense = tiny_llama()
        exact = logits(dense).log_softmax(-1)
        if keep is None:
            made = student(dense, of="dense", ffn=64)
        else:
            made = dense
            for layer in made.model.layers:
                for part, dim in ((layer.mlp.gate_proj, 0), (layer.mlp.up_proj, 0), (layer.mlp.down_proj, 1)):
                    part.weight = torch.nn.Parameter(part.weight.index_select(dim, keep))
        return float((exact.exp() * (exact - logits(made).log_softmax(-1))).sum(-1).mean())

    assert error(None) < 0.9 * min(error(torch.arange(64)), error(torch.arange(32, 96)))


def test_depth_and_width_together():
    made = student(tiny_llama(), of="dense", ffn=32, drop_layers=[1])
    assert len(made.model.layers) == made.config.num_hidden_layers == 2
    assert torch.isfinite(logits(made)).all()


@pytest.mark.parametrize("family", ["glm4_moe", "qwen2_moe"])
def test_dropped_layers_leave_a_model_that_loads(tmp_path, family):
    """Layer 0 is dense: which layers have experts is written down by number in config.json."""
    for dropped in ([0], [1], [0, 2]):
        folder = tmp_path / f"{family}-{dropped}"
        folder.mkdir()
        model = tiny_moe(folder, shared=32, experts=8, family=family, dense_layers=[0]).model
        made = student(model, per_token=None, drop_layers=dropped)
        expected = logits(made)
        made.save_pretrained(folder / "student")
        again = load.load_model(folder / "student")
        assert torch.allclose(logits(again), expected, atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"distill\.student\.ffn: 97 is more than the model's 96"):
        student(tiny_llama(), of="dense", ffn=97)
    moe = tiny_moe(tmp_path, shared=32).model
    with pytest.raises(InputError, match=r"distill\.student\.ffn: an MoE student has experts"):
        student(moe, of="dense", ffn=16)  # asked as of a dense student, and given an MoE
    with pytest.raises(InputError, match="can be compared in one vocabulary only"):
        students.check_vocabularies(300, 512)


@pytest.mark.parametrize(
    ("own", "fewer", "share"),
    [
        ({"split": "copy", "granularity": 1}, 1, 1.0),
        ({"split": "copy", "granularity": 2, "per_token": 4}, 2, 1.0),
        ({"split": "copy", "granularity": 2, "per_token": 4}, 1, 0.5),
        ({"split": "random"}, 1, 0.5),
    ],
)
def test_fewer_copies_are_still_one_ffn(tmp_path, own, fewer, share):
    """Chosen copies beyond one FFN are averaged: with fewer of them the output is as large as before. Neurons of another split run or do not."""
    made = tiny_moe(tmp_path, **own).model
    before = made.model.layers[0].mlp.experts.down_proj.clone()
    reference = logits(made)
    factors = made.config.moesaic_factors
    small = student(made, per_token=fewer)
    torch.testing.assert_close(small.model.layers[0].mlp.experts.down_proj, before * share)
    assert small.config.moesaic_factors == [factor * share for factor in factors]
    if own["split"] == "copy" and own["granularity"] == 1:
        torch.testing.assert_close(logits(small), reference, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(reference, logits(tiny_llama()), atol=1e-4, rtol=1e-4)
    assert getattr(small.config, "moesaic_copy_pieces", None) == own.get("granularity")
