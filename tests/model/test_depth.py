"""Depth: expansion that changes nothing, pruning and labels by hand, settings that are refused, what the planner counts."""

import pytest
import torch
from depth_models import IDS, expanded, logits, routed, run_like
from tiny import tiny_llama, tiny_moe
from torch import nn
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.model import depth, size
from moesaic.model.depth import skip, static
from moesaic.model.depth.expand import PARALLEL, outputs, places, spherical
from moesaic.model.depth.labels import METHODS, similarity
from moesaic.schema import Skip


def test_expansion_and_fresh_routers_change_nothing(model):
    before = logits(model)
    routed(expanded(model, every=2))
    assert model.config.num_hidden_layers == len(model.model.layers) == 4
    assert model.config.inserted_layers == [2]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    for mode in (True, False):
        assert torch.equal(logits(model.train(mode)), before), f"training={mode}"
    weights = outputs(model.model.layers[2])
    assert len(weights) >= 2
    with torch.no_grad():
        for weight in weights:
            assert not weight.any()
            weight.add_(0.1)
    assert not torch.allclose(logits(model), before), "the new layer is there"


def test_an_expanded_model_is_a_standard_checkpoint(model, tmp_path):
    from transformers import AutoModelForCausalLM

    expanded(model, after=[0, 0, 1], every=None)
    before = logits(model)
    assert model.config.inserted_layers == [1, 2, 4]
    assert model.config.num_hidden_layers == 6
    depth.save(model, tmp_path / "out")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(run_like(again, model)), before)
    assert again.config.inserted_layers == [1, 2, 4]
    expanded(again, after=[0], every=None)
    assert again.config.inserted_layers == [1, 2, 3, 5]


def test_copies_and_merges():
    parent = tiny_llama()
    copied = expanded(tiny_llama(), method="copy", after=[1], every=None)
    name = "self_attn.q_proj.weight"
    two, one = (dict(parent.model.layers[i].named_parameters())[name] for i in (1, 0))
    new = dict(copied.model.layers[2].named_parameters())[name]
    assert torch.equal(new, two)
    assert new.data_ptr() != dict(copied.model.layers[1].named_parameters())[name].data_ptr()
    mixed = dict(
        expanded(tiny_llama(), method="mean", after=[1], every=None).model.layers[2].named_parameters()
    )
    assert torch.allclose(mixed[name], (one + two) / 2)
    merged = dict(
        expanded(tiny_llama(), method="slerp", after=[1], every=None).model.layers[2].named_parameters()
    )
    cosine = functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
    length = merged[name].norm()
    assert length.item() == pytest.approx((one.norm() + two.norm()).item() / 2, rel=1e-5)
    half = functional.cosine_similarity(one.flatten(), merged[name].flatten(), dim=0)
    assert half.item() == pytest.approx(torch.cos(torch.acos(cosine) / 2).item(), rel=1e-4)


def test_slerp_by_hand():
    found = spherical(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0]), 0.5)
    assert found.tolist() == pytest.approx([3 * 0.5**0.5, 3 * 0.5**0.5])
    near = torch.tensor([1.0, 1e-3])
    assert float(functional.cosine_similarity(near, torch.tensor([1.0, 0.0]), dim=0)) > PARALLEL
    assert torch.allclose(spherical(near, torch.tensor([1.0, 0.0]), 0.5), torch.tensor([1.0, 5e-4]))
    assert places(32, 4, []) == [3, 7, 11, 15, 19, 23, 27, 31]


@pytest.mark.parametrize("unit", ["ffn", "layer"])
def test_influence_by_hand_and_pruning(unit):
    model = tiny_llama(num_hidden_layers=4)
    mask = torch.ones_like(IDS)
    mask[1, 9:] = 0
    found = static.influence(model, [(IDS[:1], None), (IDS[1:], mask[1:])], unit)
    hidden = model(input_ids=IDS, attention_mask=mask, output_hidden_states=True).hidden_states
    for index in range(4):
        one, two = hidden[index], hidden[index + 1]
        if index == 3:  # transformers gives the last one after the final norm
            continue
        if unit == "ffn":
            layer = model.model.layers[index]
            ids = torch.arange(IDS.shape[1])[None]
            causal = torch.full((17, 17), -torch.inf).triu(1)[None, None]
            attended, _ = layer.self_attn(
                layer.input_layernorm(one),
                position_embeddings=model.model.rotary_emb(one, ids),
                attention_mask=causal,
            )
            one = one + attended
        cosine = functional.cosine_similarity(one, two, dim=-1)[mask.bool()]
        assert found[index] == pytest.approx(1 - cosine.mean().item(), abs=1e-5)
    before = logits(model)
    chosen = static.choose(found, range(4), 0.5)
    assert chosen == sorted(sorted(range(4), key=lambda i: found[i])[:2])
    static.prune(model, chosen, unit)
    after = logits(model)
    assert not torch.allclose(before, after)
    if unit == "layer":
        assert model.config.num_hidden_layers == 2
        assert not skip.layers(model)
        return
    folded = depth.fold.fold(model)
    assert folded.off == chosen
    assert torch.equal(logits(folded.model), after)
    counted = size.count(model)
    assert counted.running(depth.shares(model)) == counted.active - 2 * 3 * 48 * 96


def test_pruned_ffns_come_back(tmp_path):
    model = tiny_llama()
    static.prune(model, [1], "ffn")
    before = logits(model)
    depth.save(model, tmp_path / "out")
    again = depth.load(tmp_path / "out")
    assert torch.equal(logits(again), before)
    assert depth.facts(again) == {"off": [1], "routed": [], "share": {"1": 0.0}}


def test_labels_by_hand():
    state = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    ffn = torch.tensor([[0.0, 1.0], [0.0, 0.0], [-4.0, 0.0]])
    assert similarity(state, ffn).tolist() == pytest.approx([0.5**0.5, 1.0, -1.0])
    mu = torch.tensor([[0.9, 0.1, 0.5, 0.8], [0.95, 0.2, 0.99, 0.97], [0.3, 0.4, 0.85, 0.96]])
    ran = torch.tensor([[True, False, True, True]] * 3)
    # ceil(0.55 * 12) = 7 least similar of all: 0.1 0.2 0.3 0.4 0.5 0.8 0.85
    assert METHODS["cos-global"](mu, ran, 0.55, []).tolist() == [[0, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0]]
    assert METHODS["cos-layer"](mu, ran, 0.5, []).tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert METHODS["self"](mu, ran, 0.5, []).tolist() == ran.float().tolist()
    assert METHODS["cos-global"](mu, ran, 1.0, []).sum() == 12
    assert METHODS["cos-global"](torch.zeros(2, 3), ran, 0.5, []).tolist() == [[1, 1, 1], [0, 0, 0]], (
        "ties: the first"
    )
    # 0.9 * 10 is 9.000000000000000x in floating point; its ceiling is 9
    assert METHODS["cos-layer"](torch.rand(1, 10), ran, 0.9, []).sum() == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"expand": {"after": [7], "every": None}},
            r"expand\.after: \[7\] do not exist, the model has the layers 0 to 2",
        ),
        ({"expand": {"every": 9}}, r"expand\.every: 9 is more than the model's 3 layers"),
        ({"of": "dense", "expand": {"method": "slerp", "after": [0], "every": None}}, "layer 0 has none"),
        ({"skip": {"layers": [5]}}, r"skip\.layers: 5 does not exist"),
        ({"skip": {"layers": "inserted"}}, "no layer may skip"),
        ({"skip": {"spare_first": 2, "spare_last": 1}}, "no layer may skip"),
        ({"skip": {"method": "static", "capacity": 0.9}}, "leaves all of them; lower it"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    from moesaic.schema import Depth

    with pytest.raises(InputError, match=message):
        depth.prepare(tiny_llama(), Depth(**changes).model_dump(mode="json"), lambda rows: [(IDS, None)])


def test_experts_do_not_merge_and_nothing_skips_twice(tmp_path):
    moe = tiny_moe(tmp_path).model
    with pytest.raises(InputError, match="the experts of two layers do not correspond"):
        expanded(moe, method="mean", every=2)
    routed(moe, [0])
    with pytest.raises(InputError, match="skips already; expand it before"):
        expanded(moe, every=2)
    with pytest.raises(InputError, match="skips already; start from one that does not"):
        depth.eligible(moe, Skip().model_dump(mode="json"))


def test_eligible_layers():
    model = expanded(tiny_llama(), every=1)
    own = Skip(layers="inserted", spare_last=1).model_dump(mode="json")
    assert depth.eligible(model, own) == [1, 3]
    assert depth.eligible(model, Skip(layers=[4, 0, 2], spare_first=1).model_dump(mode="json")) == [2, 4]
    assert isinstance(model.model.layers, nn.ModuleList)


def test_the_planner_counts_what_runs():
    from transformers import LlamaForCausalLM

    from moesaic import plan
    from moesaic.schema import Depth

    with torch.device("meta"):
        dense = LlamaForCausalLM(tiny_llama().config)

    def flops(**changes):
        return plan.flops_per_token(
            plan.deepened(dense, dense, Depth(**changes).model_dump(mode="json")), 64, True
        )

    new, ffn, router = {"every": 1}, 6 * 3 * 48 * 96, 6 * 49
    assert flops(expand=new) - flops(expand=new, skip={"capacity": 0.5}) == pytest.approx(
        6 * (0.5 * ffn - router)
    )
    pruned = flops(skip={"method": "static", "capacity": 0.6, "unit": "ffn"})
    assert plan.flops_per_token(dense, 64, True) - pruned == pytest.approx(6 * 3 * 48 * 96)
    assert dense.config.num_hidden_layers == 3, "the model that the plan is about is left alone"


def test_a_folded_model_keeps_what_is_not_its_layers(tmp_path):
    model = tiny_moe(tmp_path, tiny_llama().to(torch.bfloat16), family="glm4_moe", shared_experts=2).model
    bias = model.model.layers[0].mlp.gate.e_score_correction_bias
    bias.copy_(torch.linspace(0.1234567, 0.4, len(bias)))
    model.generation_config.eos_token_id = [2, 7]
    skip.attach(model, [], [1])
    folded = depth.fold.fold(model).model
    assert folded.generation_config.eos_token_id == [2, 7]
    found = folded.model.layers[0].mlp.gate.e_score_correction_bias
    assert found.dtype == torch.float32
    assert torch.equal(found, bias)
    assert folded.dtype == torch.bfloat16
