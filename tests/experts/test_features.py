"""Calibration statistics against their definitions, however the text is cut into batches."""

import pytest
import torch
from tiny import loss_changes, tiny_llama, tiny_moe, tiny_text

from moesaic.errors import InputError
from moesaic.experts import calibration, clusters, sizes, split_layers
from moesaic.experts.assignment import generator
from moesaic.experts.features import Activations, Ffn, measure
from moesaic.experts.trace import Trace
from moesaic.flow import files
from moesaic.model.lazy import LazyModel, ffn_of
from moesaic.schema import Experts


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


def by_gradients(folder, text, cluster_N, clusters):
    """Features of all layers of the model in `folder`, from the backward pass."""
    dense, found = LazyModel(folder / "m"), {}
    trace = Trace(dense, text, 3, folder)
    trace.run()
    gradients = trace.gradients()
    while gradients.next >= 0:
        index, block = gradients.next, dense.layer(gradients.next)
        batches = gradients.activations(block, ffn_of(block), cluster_N)
        found[index] = measure(
            ffn_of(block), batches, frozenset({"importance"}), 0.1, generator(0, 0, 1), clusters
        )
    return [found[index] for index in range(dense.layers)]


def test_gradients_equal_autograd_on_the_whole_model(tmp_path):
    """The layer-by-layer backward pass against hooks on the ordinary model; held-out blocks take no part."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "m")
    text = tiny_text(6, 16)
    cluster = torch.tensor([0, 1, 1, 0])
    found = by_gradients(tmp_path, text, cluster, 2)
    expected, squares = torch.zeros(3, 2, 96), torch.zeros(3, 96)
    for row, layer, change_TF in loss_changes(model, text):
        expected[layer, cluster[row]] += change_TF.abs().sum(dim=0)
        squares[layer] += change_TF.square().sum(dim=0)
    for index in range(3):
        assert torch.allclose(found[index].importance_CF, expected[index] / 32, rtol=1e-3, atol=1e-6)
        assert torch.allclose(found[index].sensitivity_F, squares[index] / 64, rtol=1e-3, atol=1e-7)


def test_an_interrupted_trace_goes_on(tmp_path):
    """The pass down and the pass back, each killed in the middle."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "m")
    text, dense = tiny_text(6, 16), LazyModel(tmp_path / "m")
    whole = by_gradients(tmp_path, text, None, 0)
    (tmp_path / "cut").mkdir()
    first = Trace(dense, text, 3, tmp_path / "cut")
    right, asked = dense.layer, []

    def layer(index):
        asked.append(index)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return right(index)

    dense.layer = layer
    with pytest.raises(KeyboardInterrupt):
        first.run()
    dense.layer = right
    again = Trace(dense, text, 3, tmp_path / "cut")
    assert again.done == 2
    again.run()
    assert torch.equal(again.inputs_LNTD, Trace(dense, text, 3, tmp_path).inputs_LNTD)
    hidden = model.model(input_ids=text.ids_NT, output_hidden_states=True).hidden_states
    for index in range(3):
        assert torch.allclose(again.inputs_LNTD[index], hidden[index], atol=1e-4)
    begun = again.gradients()
    list(begun.activations(dense.layer(2), ffn_of(dense.layer(2)), None))
    half = begun.activations(dense.layer(1), ffn_of(dense.layer(1)), None)
    next(half)  # killed within a layer
    later = again.gradients()
    assert later.next == 1
    found = measure(
        ffn_of(dense.layer(1)), later.activations(dense.layer(1), ffn_of(dense.layer(1)), None), frozenset(), 0.1, generator(0, 0, 1)
    )  # fmt: skip
    assert torch.equal(found.sensitivity_F, whole[1].sensitivity_F)


def test_fewer_tokens_for_the_gradients_are_chosen_evenly(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "m")
    trace = Trace(LazyModel(tmp_path / "m"), tiny_text(10, 16), 3, tmp_path)
    trace.run()
    assert trace.gradients(64).blocks_B.tolist() == [0, 2, 4, 6]
    found = list(trace.gradients(64).activations(trace.dense.layer(2), ffn_of(trace.dense.layer(2)), None))
    assert [batch.fold for batch in found] == [0, 1]
    assert sum(len(batch.x_TD) for batch in found) == 64


def test_no_room_is_said_before_anything_runs(tmp_path, monkeypatch):
    """Trace, two turns of a stream, layers and the model of them; what an interrupted conversion left counts as there."""
    asked = []
    monkeypatch.setattr(files, "check_room", lambda folder, need, *words: asked.append(need))
    made = tiny_moe(tmp_path, split="activation", compensate=0.5, reconstruct="least-squares", shared=32)
    weights = (tmp_path / "moe/model/model.safetensors").stat().st_size
    states = 10 * 32 * 48 * 4  # blocks, tokens, width, float32
    left = sum(path.stat().st_size for path in (tmp_path / "work").rglob("*") if path.is_file())
    assert asked == [pytest.approx(states * (4 + 2) + 2 * weights, rel=0.02)]
    assert left + weights == pytest.approx(asked[0], rel=0.25), "that much is what was written"
    tiny_moe(tmp_path, split="activation", compensate=0.5, reconstruct="least-squares", shared=32)
    assert asked[1] == pytest.approx(weights, rel=0.35)
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 10_000}))
    (tmp_path / "full").mkdir()
    with pytest.raises(InputError, match=r"no room on the disk for the conversion.*calibration\.tokens"):
        tiny_moe(tmp_path / "full", split="activation", shared=32)
    assert not list((tmp_path / "full/work").iterdir())
    assert made.layers


def test_gradients_of_fewer_tokens_leave_all_else_as_it_is(tmp_path, monkeypatch):
    """Only the sensitivities come from the limited pass back."""
    tiny_llama().save_pretrained(tmp_path / "m")
    text, found, right = tiny_text(10), {}, split_layers.split_one

    def seen(name, ffn, features, *more):
        found[limit, more[-1]] = features
        return right(name, ffn, features, *more)

    monkeypatch.setattr(split_layers, "split_one", seen)
    for limit in (64, 10**6):
        settings = {"clusters": "domain", "gradient_tokens": limit}
        (tmp_path / str(limit)).mkdir()
        tiny_moe(tmp_path / str(limit), text=text, split="activation", shared=32, calibration=settings)
    for index in range(3):
        few, every = found[64, index], found[10**6, index]
        assert few.tokens == every.tokens == 8 * 32
        for name in ("rate_F", "energy_F", "x_gram_DD", "patterns_FP"):
            assert torch.equal(getattr(few, name), getattr(every, name)), name
        assert not torch.equal(few.sensitivity_F, every.sensitivity_F)
    # two blocks of the eight, by autograd
    squares = torch.zeros(3, 96)
    for row, index, change_TF in loss_changes(tiny_llama(), text):
        if row in (0, 4):
            squares[index] += change_TF.square().sum(dim=0)
    for index in range(3):
        assert torch.allclose(found[64, index].sensitivity_F, squares[index] / 64, rtol=1e-3, atol=1e-7)


def test_splits_at_once_are_bounded_by_memory(monkeypatch):
    def free(size):
        monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": size}))

    counts = 4 * 11008**2  # LLaMA-2-7B's F x F counts
    free(10**12)
    assert split_layers.at_once(10**6, frozenset({"patterns"}), 64) == 128
    assert split_layers.at_once(counts, frozenset({"coactivation"}), 64) == 4
    free(2 * 16 * counts)
    assert split_layers.at_once(counts, frozenset({"coactivation"}), 64) == 1
    free(10**6)
    assert split_layers.at_once(counts, frozenset({"coactivation"}), 64) == 1


def test_no_more_splits_wait_than_fit(tmp_path, monkeypatch):
    """Processes and none give the same split; never more are under way than may be."""
    under_way = []
    monkeypatch.setattr(split_layers, "at_once", lambda *_: 1)
    right = split_layers.ProcessPoolExecutor.submit

    def submit(self, *arguments):
        assert all(future.done() for future in under_way)
        under_way.append(right(self, *arguments))
        return under_way[-1]

    monkeypatch.setattr(split_layers.ProcessPoolExecutor, "submit", submit)
    tiny_llama().save_pretrained(tmp_path / "m")
    settings = Experts(
        split="coactivation", experts=4, per_token=2, calibration={"clusters": "domain"}
    ).model_dump(mode="json")
    widths, found = sizes.sizes(96, settings), []
    for workers in (0, 2):
        work = tmp_path / str(workers)
        trace = Trace(LazyModel(tmp_path / "m"), tiny_text(), 3, work)
        trace.run()
        found.append(split_layers.run(trace.dense, trace, None, [settings] * 3, widths, (), 0, work, workers))
    assert len(under_way) == 3
    for one, two in zip(*found, strict=True):
        assert torch.equal(one.routed_EM, two.routed_EM)


def test_a_cluster_without_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="cluster 2 of 4"):
        tiny_moe(tmp_path, text=tiny_text(4), split="gradient", experts=4, calibration={"clusters": "domain"})


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


def test_text_without_spaces_has_clusters_too():
    sea, bread = "船は海を渡り港に着いた波と風", "小麦粉と水で生地をこねて窯で焼く"
    texts = [sea[i:] + sea[:i] for i in range(4)] + [bread[i:] + bread[:i] for i in range(4)]
    labels = clusters.by_text(texts, 2, 0)
    assert labels[:4].unique().numel() == labels[4:].unique().numel() == 1
    assert labels[0] != labels[4]


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
