"""Skipping: exact, really leaves work out, comes back from files, folds into a standard model."""

import json

import pytest
import torch
from depth_models import IDS, expanded, logits, randomise, routed, run_like
from tiny import tiny_llama, tiny_moe

from moesaic.errors import InputError
from moesaic.model import depth, families, load
from moesaic.model.depth import skip


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
    found = logits(again)
    assert torch.allclose(found, before, atol=1e-5), "another backend runs the experts of a loaded model"
    assert list(skip.layers(again)) == [0, 2, 3]
    assert depth.shares(again) == {2: 0.25}
    assert int(skip.layers(again)[0].router.budget) == 123_456_789
    assert type(again) is type(model)
    assert torch.equal(logits(load.load_model(tmp_path / "out", dtype=torch.float32)), found)
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
