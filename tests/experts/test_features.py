"""Calibration statistics against their definitions, however the text is cut into batches."""

import pytest
import torch
from tiny import tiny_llama, tiny_text

from moesaic.errors import InputError
from moesaic.experts import calibration, clusters, importance
from moesaic.experts.assignment import generator
from moesaic.experts.features import Activations, Ffn, measure
from moesaic.model.lazy import LazyModel


def a_layer(tokens=120, hidden=12, width=40):
    stream = torch.Generator().manual_seed(0)
    shapes = ((width, hidden), (width, hidden), (hidden, width))
    ffn = Ffn(*(torch.randn(*shape, generator=stream) for shape in shapes))
    x = torch.randn(tokens, hidden, generator=stream)
    return ffn, x, ffn.hidden(x)


def test_statistics_by_hand_and_in_any_batches():
    ffn, x, h = a_layer()
    needs = frozenset({"coactivation", "active"})
    whole = measure(ffn, [Activations(x, h)], needs, 0.25, generator(0, 0, 1))
    parts = [Activations(x[i : i + 37], h[i : i + 37]) for i in range(0, 120, 37)]
    cut = measure(ffn, parts, needs, 0.25, generator(0, 0, 1))
    contribution = h.abs() * ffn.down_DF.norm(dim=0)
    active = torch.zeros_like(h)
    for token in range(120):
        active[token, contribution[token].argsort(descending=True)[:10]] = 1
    assert torch.allclose(whole.rate_F, active.mean(0))
    assert torch.allclose(whole.energy_F, contribution.square().mean(0), rtol=1e-5)
    assert torch.allclose(whole.h_mean_F, h.mean(0), atol=1e-5)
    assert torch.allclose(whole.x_gram_DD, x.T @ x / 120, atol=1e-5)
    assert torch.allclose(whole.coactivation_FF, active.T @ active)
    assert torch.equal(torch.from_numpy(whole.active_TF.unpack()).float(), active)
    for name in ("rate_F", "energy_F", "h_mean_F", "h_square_F", "x_mean_D", "x_gram_DD", "coactivation_FF"):
        assert torch.allclose(getattr(whole, name), getattr(cut, name), rtol=1e-4, atol=1e-5), name


def test_patterns_keep_angles():
    ffn, x, h = a_layer(tokens=400)
    found = measure(ffn, [Activations(x, h)], frozenset(), 0.1, generator(0, 0, 1)).patterns_FP
    exact = torch.nn.functional.normalize((h.abs() * ffn.down_DF.norm(dim=0)).T, dim=1)
    assert (found @ found.T - exact @ exact.T).abs().mean() < 0.08


def test_importance_equals_autograd_on_the_whole_model(tmp_path):
    """The layer-by-layer backward pass against hooks on the ordinary model."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "m")
    ids = torch.randint(3, 512, (4, 16), generator=torch.Generator().manual_seed(1))
    cluster = torch.tensor([0, 1, 1, 0])
    found = importance.measure(LazyModel(tmp_path / "m"), ids, cluster, 2, 3, tmp_path)
    kept = {}
    for index, block in enumerate(model.model.layers):
        block.mlp.down_proj.register_forward_pre_hook(
            lambda _m, inputs, index=index: kept.update({index: inputs[0]})
        )
    expected = torch.zeros(3, 2, 96)
    for row in range(4):
        logits = model(input_ids=ids[row : row + 1]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[row, 1:], reduction="sum")
        gradients = torch.autograd.grad(loss, [kept[i] for i in range(3)])
        for index in range(3):
            expected[index, cluster[row]] += (kept[index] * gradients[index]).abs().sum(dim=(0, 1)).detach()
    assert torch.allclose(found, expected / 32, rtol=1e-3, atol=1e-6)
    assert torch.equal(importance.measure(LazyModel(tmp_path / "m"), ids, cluster, 2, 3, tmp_path), found)


def test_a_cluster_without_text_is_refused(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="cluster 2 of 3"):
        importance.measure(
            LazyModel(tmp_path / "m"), tiny_text().ids_NT[:4], torch.tensor([0, 1, 0, 1]), 3, 2, tmp_path
        )


def test_text_clusters_separate_topics():
    sea, bread = (
        "the ship sails the sea and the harbour waves wind {}",
        "flour water yeast oven dough bread bake crust {}",
    )
    texts = [template.format(word) for word in ("a", "b", "c", "d") for template in (sea, bread)]
    labels = clusters.by_text(texts, 2, 0)
    assert labels[0::2].unique().numel() == labels[1::2].unique().numel() == 1
    assert labels[0] != labels[1]
    with pytest.raises(InputError, match="cannot form 9 clusters"):
        clusters.by_text(texts, 9, 0)


def test_domain_clusters_cover_every_expert():
    labels = clusters.by_domain(torch.tensor([0] * 6 + [1] * 6), 4)
    assert sorted(labels.unique().tolist()) == [0, 1, 2, 3]
    assert set(labels[:6].tolist()).isdisjoint(labels[6:].tolist())


def test_batches_hold_one_fold_and_single_held_out_blocks():
    fold = torch.tensor([0, 0, 0, 1, 1, -1, -1])
    assert calibration.batches(fold, 2) == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6), slice(6, 7)]


def test_activations_that_are_not_finite_are_refused(tmp_path):
    ffn, x, _ = a_layer(hidden=12)
    bad = x.view(4, 30, 12).clone()
    bad[2, 3, 4] = float("inf")
    source = calibration.LayerActivations(
        ffn, torch.nn.Identity(), bad, torch.tensor([0, 0, 0, -1]), [slice(0, 3), slice(3, 4)]
    )
    with pytest.raises(InputError, match="NaN or infinite activations"):
        list(source.fitting())
