"""Split methods on tiny layers: exact sizes, nothing lost, planted structure found."""

import dataclasses

import pytest
import torch
from test_features import a_layer
from tiny import tiny_moe, tiny_text

from moesaic.errors import InputError
from moesaic.experts import scale, sizes, splits
from moesaic.experts.assignment import Assignment, Sizes, generator
from moesaic.experts.features import Activations, Ffn, measure
from moesaic.schema import Experts

EVERYTHING = frozenset({"coactivation", "active"})


def layer(width=64):
    ffn, x, h = a_layer(tokens=400, hidden=24, width=width)
    return ffn, Activations(x, h)


def features(ffn, batches, experts, top=0.2):
    width = ffn.width
    importance = torch.rand(experts, width, generator=torch.Generator().manual_seed(3))
    sensitivity = torch.rand(width, generator=torch.Generator().manual_seed(4))
    known = measure(ffn, batches, EVERYTHING, top, generator(0, 0, 1))
    return dataclasses.replace(known, importance_CF=importance, sensitivity_F=sensitivity)


def options(split, **changes):
    return Experts(split=split, router="random", experts=4, **changes).model_dump(mode="json")


def widths(split, shared, experts, width=64):
    if split in ("copy", "drop"):
        return Sizes(width, shared, experts, (width - shared) // 2, granularity=2)
    neurons = (width - shared) // experts
    return Sizes(width, shared, experts, neurons + (neurons // 4 if split == "sharing-inner" else 0))


@pytest.mark.parametrize("name", splits.METHODS)
@pytest.mark.parametrize(("shared", "experts"), [(0, 4), (16, 6), (32, 2), (60, 4)])
def test_sizes_are_exact_and_no_neuron_is_lost(name, shared, experts):
    ffn, batch = layer()
    method, wanted = splits.METHODS[name], widths(name, shared, experts)
    known = features(ffn, [batch], experts)
    one = method.split(ffn, known, wanted, options(name), 1, 0)
    one.check(wanted, method.OVERLAP)
    again = method.split(ffn, known, wanted, options(name), 1, 0)
    assert torch.equal(one.routed_EM, again.routed_EM)
    assert torch.equal(one.shared_S, again.shared_S)
    if name == "random":
        assert not torch.equal(one.routed_EM, method.split(ffn, known, wanted, options(name), 2, 0).routed_EM)


@pytest.mark.parametrize("name", splits.METHODS)
@pytest.mark.parametrize("shared_experts", [0, 1, 2])
@pytest.mark.parametrize("family", ["auto", "other"])
def test_every_method_converts_exactly(tmp_path, llama, name, shared_experts, family):
    """Every method x 0, 1, 2 shared experts x two families: all experts on give the dense logits; saved and loaded they stay."""
    copying = name in ("copy", "drop")
    experts = {0: 4, 1: 5, 2: 4}[shared_experts]  # 96 = 4 * 24 = (1 + 5) * 16 = (2 + 4) * 16
    changes = {"split": name, "experts": experts, "shared_experts": shared_experts or None}
    if copying:
        changes |= {"granularity": 2, "experts": 4} | (
            {"shared": 16 * shared_experts, "shared_experts": None}
        )
    if family == "other":
        changes["family"] = "glm4_moe" if shared_experts else "granitemoeshared"
    if (
        copying
        and shared_experts
        and family == "other"
        and changes["shared"] % ((96 - changes["shared"]) // 2)
    ):
        changes["family"] = "qwen2_moe"
    made = tiny_moe(tmp_path, llama, tiny_text(12), **changes)
    assert made.proof["max_logit_error"] < 1e-4 * made.proof["max_logit"]
    assert made.proof["reload_error"] < 2e-6
    expected = {"auto": "granitemoeshared" if shared_experts else "mixtral"}.get(
        family, changes.get("family")
    )
    assert made.model.config.model_type == expected


def test_activation_split_finds_planted_groups():
    """Neurons 0-7 always fire strongly; the others fire in two groups on disjoint tokens."""
    torch.manual_seed(0)
    tokens, width = 300, 40
    h = torch.zeros(tokens, width)
    h[:, :8] = 5 + torch.rand(tokens, 8)
    first = torch.arange(tokens) % 2 == 0
    left, right = torch.arange(8, 40)[::2], torch.arange(8, 40)[1::2]
    h[first.nonzero(), left] = 1 + torch.rand(int(first.sum()), 16)
    h[(~first).nonzero(), right] = 1 + torch.rand(int((~first).sum()), 16)
    ffn = Ffn(torch.zeros(width, 4), torch.zeros(width, 4), torch.ones(4, width))
    batch = Activations(torch.zeros(tokens, 4), h, gradient_TF=torch.ones(tokens, width))
    known = measure(ffn, [batch], EVERYTHING, 0.6, generator(0, 0, 1))
    for name in ("activation", "coactivation", "coactivation-sampled"):
        found = splits.METHODS[name].split(ffn, known, Sizes(width, 8, 2, 16), options(name), 0, 0)
        assert found.shared_S.tolist() == list(range(8)), name
        assert {tuple(row.tolist()) for row in found.routed_EM} == {
            tuple(left.tolist()),
            tuple(right.tolist()),
        }, name


def test_activation_shares_what_the_loss_or_the_rate_asks_for():
    ffn, batch = layer()
    known = features(ffn, [batch], 4)
    known.sensitivity_F[[5, 17, 40, 63]] = 3.0
    known.rate_F[[1, 2, 30, 50]] = 0.99
    for by, expected in (("sensitivity", [5, 17, 40, 63]), ("rate", [1, 2, 30, 50])):
        chosen = options("activation", activation={"shared_by": by})
        assert splits.needs(chosen) == {"patterns", by}
        found = splits.METHODS["activation"].split(ffn, known, Sizes(64, 4, 4, 15), chosen, 0, 0)
        assert found.shared_S.tolist() == expected


def test_gradient_split_follows_importance():
    importance = torch.full((3, 12), 0.1)
    for expert in range(3):
        importance[expert, expert::3] = 1.0
    ffn, batch = layer(width=12)
    known = dataclasses.replace(
        measure(ffn, [batch], frozenset(), 0.2, generator(0, 0, 1)), importance_CF=importance
    )
    found = splits.METHODS["gradient"].split(ffn, known, Sizes(12, 0, 3, 4), options("gradient"), 0, 0)
    assert [row.tolist() for row in found.routed_EM] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_importance_split_shares_the_best_and_deals_out_the_rest():
    ranked = torch.randperm(26, generator=torch.Generator().manual_seed(2))
    importance = torch.zeros(3, 26)
    importance[:, ranked] = torch.arange(26.0, 0, -1)  # the same for every cluster
    ffn, batch = layer(width=26)
    known = dataclasses.replace(
        measure(ffn, [batch], frozenset(), 0.2, generator(0, 0, 1)), importance_CF=importance
    )
    found = splits.METHODS["importance"].split(ffn, known, Sizes(26, 2, 3, 8), options("importance"), 0, 0)
    assert found.shared_S.tolist() == sorted(ranked[:2].tolist())
    rank_EM = ranked.argsort()[found.routed_EM]
    assert rank_EM.sum(dim=1).tolist() == [108, 108, 108], "no expert is better than another"


def test_sharing_inter_pools_what_all_clusters_need():
    importance = torch.rand(4, 32, generator=torch.Generator().manual_seed(0))
    importance[:, [3, 9, 20, 31]] = 5.0
    ffn, batch = layer(width=32)
    known = dataclasses.replace(
        measure(ffn, [batch], frozenset(), 0.2, generator(0, 0, 1)), importance_CF=importance
    )
    found = splits.METHODS["sharing-inter"].split(
        ffn, known, Sizes(32, 4, 4, 7), options("sharing-inter"), 0, 0
    )
    assert found.shared_S.tolist() == [3, 9, 20, 31]


def test_sharing_inner_overlaps_where_clusters_agree():
    importance = torch.rand(4, 32, generator=torch.Generator().manual_seed(0))
    importance[:, [3, 9]] = 5.0
    ffn, batch = layer(width=32)
    known = dataclasses.replace(
        measure(ffn, [batch], frozenset(), 0.2, generator(0, 0, 1)), importance_CF=importance
    )
    found = splits.METHODS["sharing-inner"].split(
        ffn, known, Sizes(32, 0, 4, 12), options("sharing-inner"), 0, 0
    )
    assert found.multiplicity()[[3, 9]].tolist() == [4, 4]
    assert int(found.multiplicity().min()) == 1


@pytest.mark.parametrize("scale", ["times-k", "unit"])
@pytest.mark.parametrize("shared", [0, 32])
@pytest.mark.parametrize(("experts", "per_token", "granularity"), [(4, 2, 2), (4, 2, 1), (8, 4, 2)])
def test_copies_start_as_the_parent(tmp_path, llama, experts, per_token, granularity, shared, scale):
    """Whole copies run, one or several, in one piece or in two (virtual groups): the untrained MoE is the dense model."""
    made = tiny_moe(
        tmp_path, llama, split="copy", experts=experts, per_token=per_token, granularity=granularity, shared=shared, scale=scale,
    )  # fmt: skip
    ids = torch.randint(3, 512, (2, 24))
    with torch.no_grad():
        assert (made.model(input_ids=ids).logits - llama(input_ids=ids).logits).abs().max() < 1e-3


def test_less_than_a_copy_counts_what_runs():
    """Two of the four pieces of a copy weigh 1 each, as experts of a split do."""
    own = options("copy", granularity=4, per_token=2) | {"experts": 8}
    assert scale.factor(own) == 2.0
    assert scale.factor(own | {"per_token": 8}) == 4.0
    assert scale.factor(own | {"scale": "n-over-k"}) == 4.0
    assert scale.factor(options("random", per_token=3)) == 3.0


def test_drop_draws_half_of_each_expert_anew(tmp_path, llama):
    made = tiny_moe(tmp_path, llama, split="drop", experts=2, per_token=1, drop={"ratio": 0.5})
    from moesaic.model import families

    part = next(families.parts(made.model))
    original = llama.model.layers[0].mlp.up_proj.weight
    kept = [
        (part.experts.gate_up_proj[e, 96:][:, None] == original[None]).all(-1).any(-1).sum().item()
        for e in range(2)
    ]
    assert kept == [48, 48]
    fresh = part.experts.gate_up_proj[:, 96:].std()
    assert float(fresh) == pytest.approx(float(original.std()), rel=0.1)


def test_methods_and_layers_can_differ(tmp_path, llama):
    made = tiny_moe(
        tmp_path, llama, split="random", layers={"0": {"split": "sequential"}, "1-2": {"scale": "unit"}}
    )
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "moe" / "assignment.parquet").to_pandas()
    first = table[table.layer == 0].sort_values("neuron")
    assert first.expert.tolist() == [n // 24 for n in range(96)]
    assert table[table.layer == 1].sort_values("neuron").expert.tolist() != first.expert.tolist()
    assert made.proof["max_logit_error"] < 1e-4 * made.proof["max_logit"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 7}, "7 experts do not divide"),
        ({"shared": 100}, "leave none of the model's 96"),
        ({"shared": 33, "experts": 4}, "4 experts do not divide"),
        ({"experts": 8}, "multiple of 8"),
        ({"shared_experts": 3}, "do not divide the FFN width"),
        ({"dense_layers": [7], "shared": 32}, "layer 7 does not exist"),
        ({"dense_layers": [0, 1, 2], "shared": 32}, "every layer is left dense"),
        ({"dense_layers": 3, "shared": 32}, "every layer is left dense"),
        ({"dense_layers": 1}, "no architecture in transformers expresses"),
        ({"layers": {"1-5": {"router": "random"}}}, "layer 3 does not exist"),
        ({"family": "mixtral", "shared": 32}, "mixtral cannot express"),
    ],
)
def test_impossible_shapes_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        tiny_moe(tmp_path, **changes)
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_token": 9}, "may not exceed experts"),
        ({"shared": 8, "shared_experts": 1}, "give one"),
        ({"granularity": 2}, "copy and drop"),
        ({"family": "glm4_moe", "dense_layers": 1}, "only its first layers dense; list them"),
        ({"split": "copy", "router": "random", "experts": 6, "granularity": 4}, "must divide experts"),
        ({"split": "copy", "router": "random", "reconstruct": "least-squares"}, "need no refit"),
        ({"split": "drop"}, "set it to random"),
        ({"layers": {"one": {}}}, "not a layer or a range"),
        ({"layers": {"1": {"experts": 2}}}, "may differ by layer"),
        ({"split": "sharing-inner", "layers": {"1": {"sharing": {"overlap": 2.0}}}}, "may differ by layer"),
        ({"layers": {"1": {"split": "copy", "router": "random"}}}, "another width"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Experts(**changes)


def test_sizes_of_shared_experts():
    found = sizes.sizes(96, options("random", shared_experts=2))
    assert (found.shared, found.neurons, found.experts) == (32, 16, 4)


@pytest.mark.parametrize(
    ("shared", "routed", "message"),
    [
        ([0], [[0, 1]], "routed expert too"),
        ([], [[0, 1], [1, 2]], "two experts"),
        ([0], [[1, 1]], "twice"),
        ([], [[0, 1]], "in no expert"),
    ],
)
def test_assignment_check_catches_errors(shared, routed, message):
    found = Assignment(torch.tensor(shared, dtype=torch.long), torch.tensor(routed), torch.zeros(3))
    with pytest.raises(AssertionError, match=message):
        found.check(Sizes(3, len(shared), len(routed), 2), overlap=False)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5])
def test_every_neuron_finds_a_place_in_experts_that_share(overlap):
    own = options("sharing-inner", shared=56, sharing={"overlap": overlap}) | {"experts": 2}
    found = sizes.sizes(96, own)
    assert found.experts * found.neurons >= 40
    assert found.neurons % 8 == 0
