"""The cut toolbox on planted graphs: the acceptance list C1 to C7 (docs/methods/construction/coactivation.md)."""

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse
from test_features import a_layer

from moesaic.experts import audit
from moesaic.experts.bits import Bits
from moesaic.experts.graphs import digraph, mincut, partition, placement, sketch, weights


def planted(neurons, groups, inside, outside, tokens, seed):
    """Boolean activations: one topic per token; a neuron fires with p_in inside the topic's group, else p_out, times a lognormal rate."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(groups), neurons // groups)
    rate = rng.lognormal(0, 0.5, neurons)
    topic = rng.integers(groups, size=tokens)
    chance = np.where(topic[:, None] == label, inside, outside) * rate
    return rng.random((tokens, neurons)) < chance, label


def counts_of(on):
    return torch.from_numpy(on.astype(np.float32).T @ on.astype(np.float32))


def value(graph, labels):
    return partition.cut(graph, labels)


@pytest.fixture(scope="module")
def bed():
    on, label = planted(2048, 16, 0.5, 0.02, 8000, 0)
    return (
        Bits.of(on),
        label,
        sparse.csr_matrix(weights.raw(counts_of(on)).numpy().astype(np.float64)),
    )


@pytest.mark.slow
def test_c1_the_sketch_is_unbiased_and_one_sketch_is_close(bed):
    active, label, exact = bed
    rng = np.random.default_rng(1)
    bisections = [rng.permutation(np.repeat([0, 1], 1024)) for _ in range(200)]
    truth = np.array([value(exact, cut) for cut in bisections])
    found = np.array(
        [
            [value(h, cut) for cut in bisections]
            for h in (sketch.sample(active, 16, False, s) for s in range(50))
        ]
    )
    assert np.abs(found.mean(axis=0) / truth - 1).max() <= 0.005
    one = sketch.sample(active, 64, False, 99)
    assert np.abs(np.array([value(one, cut) for cut in bisections]) / truth - 1).max() <= 0.02
    for group in range(16):
        boundary = (label == group).astype(int)
        assert abs(value(one, boundary) / value(exact, boundary) - 1) <= 0.04


@pytest.mark.slow
def test_c2_the_partition_of_a_sketch_finds_the_planted_groups(bed):
    active, label, exact = bed
    graph = sketch.sample(active, 64, False, 3)
    labels = partition.balanced(graph, 16, 0)
    assert np.bincount(labels).tolist() == [128] * 16
    assert value(exact, labels) <= 1.02 * value(exact, label)
    assert np.array_equal(labels, partition.balanced(sketch.sample(active, 64, False, 3), 16, 0))


def budgeted(exact, pairs, method, seed):
    """A graph of `pairs` edges: uniform sample, or the heaviest edges (what a threshold keeps)."""
    edges = sparse.triu(exact, k=1).tocoo()
    if method == "uniform":
        kept = np.random.default_rng(seed).choice(edges.nnz, size=pairs, replace=False)
    else:
        kept = np.argsort(-edges.data, kind="stable")[:pairs]
    half = sparse.csr_matrix((edges.data[kept], (edges.row[kept], edges.col[kept])), shape=exact.shape)
    return half + half.T


@pytest.mark.slow
def test_c3_degree_sampling_beats_uniform_and_threshold_and_excess_beats_raw():
    wins, excess_wins = 0, 0
    for seed in range(10):
        on, _ = planted(1024, 8, 0.5, 0.02, 3000, seed)
        exact = sparse.csr_matrix(weights.raw(counts_of(on)).numpy().astype(np.float64))
        ours = sketch.sample(Bits.of(on), 16, False, seed)
        edges = sparse.triu(ours, k=1).nnz
        assert edges <= 0.032 * 1024 * 1023 / 2
        cuts = {"ours": value(exact, partition.balanced(ours, 8, seed))}
        for method in ("uniform", "threshold"):
            cuts[method] = value(exact, partition.balanced(budgeted(exact, edges, method, seed), 8, seed))
        wins += cuts["ours"] <= min(cuts["uniform"], cuts["threshold"])
        on, _label = planted(1024, 8, 0.35, 0.05, 6000, seed)
        train, held = on[:4000], on[4000:]
        lifts = {}
        for excess in (True, False):
            labels = partition.balanced(sketch.sample(Bits.of(train), 16, excess, seed), 8, seed)
            lifts[excess] = lift(held, labels, 8)[0]
        excess_wins += lifts[True] > lifts[False]
    assert wins >= 9
    assert excess_wins >= 9


def audited(on, labels, experts, blocks=20, seed=0):
    """The audit's figures of boolean activations under a split."""
    order = np.argsort(labels, kind="stable")
    found = audit.LayerAudit(experts, on.shape[1] // experts, seed)
    for part in np.array_split(on[:, order], blocks):
        values = torch.from_numpy(part.astype(np.float32))
        # the audit marks the top share of contributions; here the activity is given, so it is handed in directly
        found.add_active(values.bool())
    return found.summary(seed)


def lift(on, labels, experts):
    summary = audited(on, labels, experts)
    return summary["lift"], summary["lift_low"], summary["lift_high"]


@pytest.mark.slow
def test_c4_independent_activations_have_no_lift():
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        on = rng.random((2000, 128)) < 0.1 * rng.lognormal(0, 0.5, 128)
        train, held = on[:1000], on[1000:]
        graph = sparse.csr_matrix(weights.excess(counts_of(train), 1000).numpy().astype(np.float64))
        _, low, high = lift(held, partition.balanced(graph, 4, seed, seeds=1), 4)
        covered += low <= 0.0 <= high
    assert covered >= 90


def test_c4_no_signal_warns(caplog):
    rng = np.random.default_rng(0)
    on = rng.random((1000, 64)) < 0.1
    summaries = [audited(on, rng.permutation(np.repeat(np.arange(4), 16)), 4, seed=s) for s in range(3)]
    audit.warn(summaries)
    assert "carries no signal" in caplog.text
    caplog.clear()
    on, label = planted(64, 4, 0.5, 0.05, 1000, 0)
    audit.warn([audited(on, label, 4)])
    assert not caplog.text


def test_planted_lift_is_found():
    on, label = planted(256, 8, 0.5, 0.02, 4000, 0)
    found = audited(on, label, 8)
    assert found["lift_low"] > 1.0
    assert found["z"] > 10
    assert found["contrast"] > 0.3


def test_c5_reordered_experts_give_the_dense_output():
    ffn, _x, h = a_layer()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).view(4, 10)
    parts = sum(h[:, row] @ ffn.down_DF[:, row].T for row in order)
    assert (parts - h @ ffn.down_DF.T).abs().max() < 1e-4 * float(
        h.abs().max() * ffn.down_DF.abs().max() * 40
    )


def test_c6_top_k_routing_without_drops_is_eulerian():
    stream = torch.Generator().manual_seed(0)
    routes = [torch.rand(500, 8, generator=stream).topk(2, dim=1).indices for _ in range(5)]
    found = audit.routing(routes, 8, 0)
    assert found["imbalance"] == 0.0
    assert found["beta"] == 1.0
    transitions = np.stack([audit._handed_on(a, b, 8) for a, b in itertools.pairwise(routes)])
    closing = audit._handed_on(routes[-1], routes[0], 8)
    dropped = transitions.copy()
    dropped[2] *= 0.95  # 5 % of the tokens get lost between two layers
    assert digraph.imbalance(digraph.routing(dropped, closing)) > 0.02
    assert digraph.certificate(digraph.routing(dropped, closing)) > 1.0


def test_placement_finds_planted_lanes():
    """Tokens stay in one of two lanes that are interleaved differently in each layer: minimum cut brings the traffic to zero."""
    rng = np.random.default_rng(0)
    lanes = [rng.permutation([0, 0, 0, 0, 1, 1, 1, 1]) for _ in range(6)]
    transitions = np.stack([np.equal.outer(a, b).astype(float) * 10 for a, b in itertools.pairwise(lanes)])
    placed = placement.minimum_cut(transitions, 2, 0)
    assert placement.traffic(transitions, placed) == 0.0
    assert all(np.bincount(row).tolist() == [4, 4] for row in placed)
    assert placement.traffic(transitions, placement.round_robin(6, 8, 2)) > 0.2


def clique_pair(half, bridges, rng):
    """Two cliques of `half` vertices with `bridges` edges between them, which are the minimum cut."""
    graph = np.zeros((2 * half, 2 * half))
    graph[:half, :half] = graph[half:, half:] = 1
    bridge = rng.choice(half * half, size=bridges, replace=False)
    left, right = bridge // half, half + bridge % half
    graph[left, right] = graph[right, left] = 1
    np.fill_diagonal(graph, 0)
    return graph


@pytest.mark.slow
@pytest.mark.parametrize("size", [60, 120, 200])
@pytest.mark.parametrize("epsilon", [0.3, 0.5])
def test_c7_local_queries_find_the_minimum_cut(size, epsilon):
    """The size is known within a factor of 2: between 1/sqrt(2) and sqrt(2) times the truth."""
    right = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        graph = sparse.csr_matrix(clique_pair(300, size, rng))
        edges = graph.nnz // 2
        found = mincut.estimate(graph, size * 2 ** rng.uniform(-0.5, 0.5), epsilon, seed)
        right += abs(found.value / size - 1) <= epsilon
        assert found.queries <= min(edges, 2 * edges * np.log(600) / (epsilon**2 * size))
    assert right >= 95


def test_minimum_cut_is_stoer_wagners():
    import networkx

    for seed in range(30):
        rng = np.random.default_rng(seed)
        half = np.triu(rng.integers(0, 5, (14, 14)) * (rng.random((14, 14)) < rng.uniform(0.15, 1)), k=1)
        graph = (half + half.T).astype(float)
        peer = networkx.from_numpy_array(graph)
        expected = networkx.stoer_wagner(peer)[0] if networkx.is_connected(peer) else 0.0
        assert mincut.exact(graph) == expected
    assert mincut.exact(clique_pair(20, 7, np.random.default_rng(0))) == 7


def test_digraph_balance_by_hand():
    cycle = np.array([[0, 2, 0], [0, 0, 2], [2, 0, 0]], dtype=float)
    assert digraph.certificate(cycle) == 1.0
    pair = np.array([[0, 6], [2, 0]], dtype=float)
    assert digraph.imbalance(pair) == pytest.approx(0.5)
    assert digraph.certificate(pair) == 3.0
    assert digraph.certificate(np.array([[0, 1], [0, 0]], dtype=float)) == float("inf")


def test_excess_is_zero_for_independent_pairs():
    counts = torch.tensor([[50.0, 25.0, 40.0], [25.0, 50.0, 10.0], [40.0, 10.0, 50.0]])
    found = weights.excess(counts, 100)
    assert found.tolist() == [[0, 0, 15], [0, 0, 0], [15, 0, 0]]


def test_parts_are_repaired_to_equal_sizes():
    ring = sparse.csr_matrix(np.eye(12, k=1) + np.eye(12, k=-1))
    labels = partition.repair(ring, np.array([0] * 9 + [1] * 3), 2)
    assert np.bincount(labels).tolist() == [6, 6]
