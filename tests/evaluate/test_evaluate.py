"""Evaluation against naive computations: likelihood, routing, bootstrap."""

import math

import numpy as np
import pytest
import torch
from small_models import KINDS, build

from moesaic.errors import InputError
from moesaic.evaluate import bootstrap, likelihood, routing
from moesaic.model import families
from moesaic.train.balance.base import Decision


class Fake:
    block = 33

    def __init__(self, n=5):
        self.ids = np.random.default_rng(1).integers(3, 512, (n, 33)).astype(np.int32)

    def __len__(self):
        return len(self.ids)

    def tokens(self, rows):
        return self.ids[rows]

    def bytes(self, rows):
        return np.full(len(rows), 100)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_hf_loss_chunk_and_batch_invariant(kind):
    m, b = build(kind), Fake()
    ids = torch.from_numpy(b.ids.astype(np.int64))
    ref = torch.stack([m(input_ids=r[None], labels=r[None]).loss * 32 for r in ids]).detach().numpy()
    for chunk in (7, 1000):
        np.testing.assert_allclose(likelihood.block_nats(m, ids, chunk).numpy(), ref, rtol=1e-5)
    for batch in (1, 3, 8):
        np.testing.assert_allclose(likelihood.measure(m, {"d": b}, None, batch)["d"].nats_N, ref, rtol=1e-5)


def test_nan_names_folder():
    m = build("llama")
    m.config._name_or_path = "results/x/model"
    with torch.no_grad():
        m.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match="results/x/model"):
        likelihood.measure(m, {"d": Fake()}, None, 2)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_routing_hand_count(kind):
    m, b = build(kind), Fake(3)
    u = likelihood.measure(m, {"d": b}, None, 2)["d"].usage
    with families.Routing(m) as r, torch.no_grad():
        m.base_model(input_ids=torch.from_numpy(b.ids[:, :-1].astype(np.int64)))
    for layer in range(2):
        hand = [int((r.indices[layer] == e).sum()) for e in range(4)]
        assert u.slots_NLE.sum(0)[layer].tolist() == hand
        p = r.logits[layer].softmax(-1)
        np.testing.assert_allclose(u.entropy_L[layer], float(-(p * p.log()).sum(-1).mean()), rtol=1e-5)
    np.testing.assert_allclose(u.load_LE.sum(-1), 1)
    np.testing.assert_allclose(u.importance_LE.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_a_routers_distribution_is_that_of_training(scores):
    logits_TE = 8 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    expected = Decision(logits_TE, torch.zeros(50, 1), torch.ones(50, 1), scores).probability_TE
    torch.testing.assert_close(routing.log_probabilities(logits_TE, scores).exp(), expected)


def test_load_cv_extremes():
    assert routing.load_cv(np.full((1, 4), 0.25))[0] == 0
    assert routing.load_cv(np.array([[1.0, 0, 0, 0]]))[0] == pytest.approx(math.sqrt(3))


def test_bootstrap_coverage_and_chunks(monkeypatch):
    g = np.random.default_rng(0)
    hit = 0
    for i in range(200):
        e = bootstrap.mean(g.normal(3, 1, 60), 300, np.random.default_rng(i))
        hit += e.low <= 3 <= e.high
    assert 176 <= hit <= 199
    a, b = g.random(50), g.random(50)
    d = bootstrap.difference([(a + b, np.ones(50))], [(b, np.ones(50))], 500, bootstrap.generator(0, "x"))
    assert d.value == pytest.approx(a.mean())
    assert d.low < a.mean() < d.high
    assert bootstrap.mean(np.array([1.0]), 100, g).low is None
