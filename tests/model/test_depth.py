"""Depth: expansion that changes nothing, skipping that is exact and really leaves work out, files that come back, folding."""

import json

import pytest
import torch
from tiny import tiny_llama, tiny_moe
from torch import nn
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.model import depth, families, load, size
from moesaic.model.depth import skip, static
from moesaic.model.depth.expand import PARALLEL, outputs, places, spherical
from moesaic.model.depth.labels import METHODS, similarity
from moesaic.schema import Expand, Skip

FAMILIES = {
    "llama": None,
    "mixtral": {},
    "granitemoeshared": {"shared": 32},
    "qwen2_moe": {"shared": 32, "family": "qwen2_moe", "dense_layers": [1]},
    "glm4_moe": {"shared_experts": 1, "experts": 3, "family": "glm4_moe", "dense_layers": [0]},
}
IDS = torch.randint(3, 512, (2, 17), generator=torch.Generator().manual_seed(7))


@pytest.fixture(params=list(FAMILIES))
def model(request, tmp_path):
    own = FAMILIES[request.param]
    made = tiny_llama() if own is None else tiny_moe(tmp_path, **own).model
    assert made.config.model_type == request.param
    return made


def expanded(model, **changes):
    depth.expand.expand(model, Expand(**changes).model_dump(mode="json"))
    return model


def routed(model, layers=None, **changes):
    own = Skip(**changes).model_dump(mode="json")
    names = ("threshold", "gate", "normed", "bias", "detach")
    skip.attach(
        model,
        range(model.config.num_hidden_layers) if layers is None else layers,
        **{n: own[n] for n in names},
    )
    return model


def randomise(model, scale=3.0):
    """Routers that send about half of the tokens past their FFN."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for router in skip.routers(model):
            router.weight.copy_(
                scale * torch.randn(router.weight.shape, generator=generator) / router.weight.shape[1] ** 0.5
            )
    return model


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


def run_like(again, model):
    """The same backend for the experts: others differ in the last bits."""
    again.set_experts_implementation(model.config._experts_implementation)
    return again


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


def by_hand(model, ids, threshold=0.5, gate=0.05):
    """The forward pass with every FFN run for every token and multiplied by a mask."""
    handles, state = [], {}

    def look(layer, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        x = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + skip.EPS)
        score = (x @ layer.depth_router.weight[0] + layer.depth_router.bias).sigmoid()
        state["factor"] = (1 + gate * (score - 0.5)) * (score >= threshold)
        state.setdefault("ran", []).append((score >= threshold).float().mean().item())

    def mask(_module, _args, output):
        return output * state["factor"][..., None]

    for layer in model.model.layers:
        handles.append(layer.register_forward_pre_hook(look, with_kwargs=True))
        for module in skip.ffn_modules(layer):
            inner = module.forward.args[0]  # the stock forward below the skipping one
            module.forward, own = inner, module.forward
            handles += [module.register_forward_hook(mask), (module, own)]
    try:
        return logits(model, ids), state["ran"]
    finally:
        for handle in handles:
            if isinstance(handle, tuple):
                handle[0].forward = handle[1]
            else:
                handle.remove()


def test_skipping_equals_a_masked_ffn(model):
    randomise(routed(model))
    expected, ran = by_hand(model, IDS)
    assert all(0.1 < share < 0.9 for share in ran), ran
    assert torch.allclose(logits(model), expected, atol=1e-4)
    found = [float(item.kept_T.float().mean()) for item in skip.layers(model).values()]
    assert found == pytest.approx(ran)


def test_skipped_tokens_cost_nothing(model):
    """The FFN's matrices see the tokens that run, and none when nobody does."""
    randomise(routed(model))
    seen: list[int] = []

    def count(_module, args):
        seen.append(args[0].reshape(-1, args[0].shape[-1]).shape[0])

    part = next(iter(families.parts(model)), None)
    watched = model.model.layers[0].mlp.gate_proj if part is None else part.experts
    index = 0 if part is None else part.layer
    watched.register_forward_pre_hook(count)
    logits(model)
    kept = int(skip.layers(model)[index].kept_T.sum())
    assert seen == [kept]
    assert 0 < kept < IDS.numel()
    with torch.no_grad():
        for router in skip.routers(model):
            router.bias.fill_(-100.0)
    seen.clear()
    assert torch.isfinite(logits(model)).all()
    assert seen == []


def test_generation_with_a_cache_equals_the_whole_sequence(model):
    """Keys and values of skipped tokens are there."""
    randomise(routed(model))
    with torch.no_grad():
        made = model.generate(IDS[:1], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    whole = logits(model, made[:, :-1]).argmax(-1)[:, IDS.shape[1] - 1 :]
    assert torch.equal(made[:, IDS.shape[1] :], whole)
    assert float(torch.stack([item.kept_T.float().mean() for item in skip.layers(model).values()]).mean()) < 1


def test_save_and_load(model, tmp_path):
    randomise(routed(expanded(model, every=3), layers=[0, 2, 3], threshold=0.4, gate=0.2))
    skip.layers(model)[2].share = 0.25
    skip.layers(model)[0].router.budget.fill_(123_456_789)
    before = logits(model)
    depth.save(model, tmp_path / "out")
    again = depth.load(tmp_path / "out")
    assert torch.equal(logits(again), before)
    assert list(skip.layers(again)) == [0, 2, 3]
    assert depth.shares(again) == {2: 0.25}
    assert int(skip.layers(again)[0].router.budget) == 123_456_789
    assert type(again) is type(model)
    assert torch.equal(logits(load.load_model(tmp_path / "out", dtype=torch.float32)), before)
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match="moesaic_depth"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "depth.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"depth routers in .*depth\.safetensors are missing or damaged"):
        depth.load(tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    depth.save(model, tmp_path / "out")
    raw = json.loads(path.read_text())
    raw["depth"]["routed"] = [0, 2]
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"does not fit config\.json"):
        depth.load(tmp_path / "out")


def test_bfloat16_keeps_budgets(tmp_path):
    model = routed(tiny_llama())
    skip.layers(model)[0].router.budget.fill_(987_654_321)
    assert int(model.bfloat16().model.layers[0].depth_router.budget) == 987_654_321
    assert skip.layers(model)[0].router(torch.ones(1, 2, 48, dtype=torch.bfloat16)).dtype == torch.float32


def test_always_on_and_always_off_fold_exactly(model, tmp_path):
    """Routers that decide by their bias alone: on, off; and an inserted layer that adds nothing goes."""
    from transformers import AutoModelForCausalLM

    routed(expanded(model, every=2))
    biases = {0: 1.5, 1: -2.0, 2: -1.0, 3: 0.3}
    with torch.no_grad():
        for index, item in skip.layers(model).items():
            item.router.bias.fill_(biases[index])
            item.share = float(biases[index] > 0)
    before = logits(model)
    found = depth.fold.fold(model)
    assert (found.on, found.off, found.removed, found.rounded, found.gate_error) == (
        [0, 3],
        [1, 2],
        [2],
        [],
        0.0,
    )
    assert found.model.config.num_hidden_layers == 3
    assert not skip.layers(found.model)
    assert torch.allclose(logits(found.model), before, atol=2e-5)
    depth.save(found.model, tmp_path / "folded")
    again = run_like(AutoModelForCausalLM.from_pretrained(tmp_path / "folded"), found.model)
    assert torch.equal(logits(again), logits(found.model))
    assert torch.equal(logits(model), before), "the skipping model is left alone"


def test_what_cannot_be_folded_is_said():
    model = randomise(routed(tiny_llama()))
    with pytest.raises(InputError, match="layer 0: nobody has measured"):
        depth.fold.fold(model)
    logits(model)
    shares = {index: float(item.kept_T.float().mean()) for index, item in skip.layers(model).items()}
    with pytest.raises(InputError, match="no standard class can express"):
        depth.fold.fold(model, shares=shares)
    found = depth.fold.fold(model, approximate=True, shares=shares)
    assert found.rounded == [0, 1, 2]
    assert found.gate_error == pytest.approx(0.0125 / 1.0125)
    on = dict.fromkeys(shares, 1.0)
    plain = depth.fold.fold(routed(tiny_llama(), gate=0.0), shares=on)
    assert torch.equal(logits(plain.model), logits(tiny_llama()))


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
        ({"expand": {"method": "slerp", "after": [0], "every": None}}, "layer 0 has none"),
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


def test_experts_load_in_evaluation_is_that_of_the_tokens_that_run(tmp_path):
    from moesaic.evaluate import routing

    model = tiny_moe(tmp_path, shared=32).model
    names = ("slots_NLE", "weights_NLE", "probability_NLE", "entropy_NL", "positions_N")

    def collected():
        with families.Routing(model) as recorded:
            logits(model)
            return recorded, routing.collect(recorded, len(IDS))

    _, before = collected()
    routed(model)
    _, fresh = collected()
    for name in names:
        assert getattr(fresh, name) == pytest.approx(getattr(before, name), rel=1e-5), name
    randomise(model)
    recorded, found = collected()
    for index, item in enumerate(skip.layers(model).values()):
        kept_BT = item.kept_T.view(2, -1)
        assert found.slots_NLE[:, index].sum(-1).tolist() == (2 * kept_BT.sum(1)).tolist()
        chosen = recorded.indices[index][: int(kept_BT[0].sum())]
        assert found.slots_NLE[0, index].tolist() == torch.bincount(chosen.flatten(), minlength=4).tolist()
    assert found.probability_NLE.sum(-1) == pytest.approx(17.0, rel=1e-5)
    with torch.no_grad():
        skip.layers(model)[1].router.bias.fill_(-100.0)
    _, some = collected()
    assert some.slots_NLE[:, 1].sum() == 0
    assert routing.load_cv(some.load_LE)[1] == 0


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
