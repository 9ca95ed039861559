"""The MoE families represent a split LLaMA FFN exactly, before and after saving."""

import pytest
import torch
from tiny import tiny_llama

from moesaic.errors import InputError
from moesaic.experts import calibrate, convert
from moesaic.model import families, load, size


@pytest.mark.parametrize("shared", [0, 32])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scale", ["mean", "unit", "n-over-k", "softmax"])
def test_all_experts_on_equals_dense(experts_settings, shared, tied, scale):
    dense = tiny_llama(tie_word_embeddings=tied)
    settings = experts_settings | {"shared": shared, "split": "random", "router": "random", "scale": scale}
    layers = calibrate.construct_layers(
        dense, lambda: iter(()), 0, settings, convert.scale_factor(settings), 0
    )
    model = convert.build(dense, layers, settings, refitted=False)
    ids = torch.randint(0, 512, (2, 24))
    before = model(input_ids=ids).logits
    proof = convert.equivalence(dense, model, settings, ids)
    assert proof["max_logit_error"] < 1e-4 * proof["max_logit"]
    assert torch.equal(before, model(input_ids=ids).logits), "the check must leave the model as it was"
    assert model.config.model_type == ("mixtral" if shared == 0 else "granitemoeshared")


def test_a_wrong_conversion_fails_the_check(llama, experts_settings):
    settings = experts_settings | {"split": "random", "router": "random"}
    layers = calibrate.construct_layers(
        llama, lambda: iter(()), 0, settings, convert.scale_factor(settings), 0
    )
    model = convert.build(llama, layers, settings, refitted=False)
    with torch.no_grad():
        next(families.parts(model)).experts.down_proj[0, 0, 0] += 5.0
    with pytest.raises(InputError, match="all experts on"):
        convert.equivalence(llama, model, settings, torch.randint(0, 512, (2, 24)))


@pytest.mark.parametrize("shared", [0, 32])
def test_save_and_load_keep_the_logits(tmp_path, llama, experts_settings, shared):
    settings = experts_settings | {"shared": shared, "split": "random", "router": "random"}
    layers = calibrate.construct_layers(
        llama, lambda: iter(()), 0, settings, convert.scale_factor(settings), 0
    )
    model = convert.build(llama, layers, settings, refitted=False)
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, 512, (2, 24))
    assert torch.equal(load.load_model(tmp_path)(input_ids=ids).logits, model(input_ids=ids).logits)


def test_sizes_by_hand(llama, experts_settings):
    dense = size.count(llama)
    settings = experts_settings | {"split": "random", "router": "random"}
    layers = calibrate.construct_layers(
        llama, lambda: iter(()), 0, settings, convert.scale_factor(settings), 0
    )
    moe = size.count(convert.build(llama, layers, settings, refitted=False))
    routers = 3 * 4 * 48
    assert moe.total == dense.total + routers
    # 64 routed neurons of 3 * 48 weights each, half of them idle, in 3 layers
    assert moe.total - moe.active == 3 * 32 * 3 * 48
    assert dense.active == dense.total


def test_routing_matches_the_model(llama, experts_settings):
    settings = experts_settings | {"split": "random", "router": "random"}
    layers = calibrate.construct_layers(
        llama, lambda: iter(()), 0, settings, convert.scale_factor(settings), 0
    )
    model = convert.build(llama, layers, settings, refitted=False)
    with families.Routing(model) as routing:
        model(input_ids=torch.randint(0, 512, (2, 24)))
    assert sorted(routing.logits) == [0, 1, 2]
    assert routing.indices[0].shape == (48, 2)
    assert torch.equal(routing.logits[1].topk(2, dim=1).indices, routing.indices[1])
    families.set_per_token(model, 1)
    with families.Routing(model) as routing:
        model(input_ids=torch.randint(0, 512, (2, 24)))
    assert routing.indices[0].shape == (48, 1)


def test_unsupported_parents_are_refused():
    from transformers import GPT2Config, LlamaConfig

    with pytest.raises(InputError, match="gpt2 is not supported"):
        families.check_parent(GPT2Config())
    with pytest.raises(InputError, match="mlp_bias"):
        families.check_parent(LlamaConfig(mlp_bias=True))


def test_pickles_remote_code_and_damage_are_refused(tmp_path, llama):
    with pytest.raises(InputError, match=r"config\.json"):
        load.load_model(tmp_path)
    llama.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged weights"):
        load.load_model(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="pickled"):
        load.load_model(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{"auto_map": {"AutoModel": "x.Y"},', 1))
    with pytest.raises(InputError, match="remote code"):
        load.load_model(tmp_path)
