"""The MoE families represent a split LLaMA FFN exactly, before and after saving, and the right one is chosen."""

import pytest
import torch
from tiny import tiny_llama, tiny_moe
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.model import families, load, size
from moesaic.model.families import FAMILIES, Shape
from moesaic.model.lazy import LazyModel


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


IDS = torch.randint(3, 512, (2, 24), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scale", ["none", "times-k", "unit", "n-over-k", "mean", "norm"])
@pytest.mark.parametrize(
    ("family", "shared"), [("mixtral", 0), ("granitemoeshared", 32), ("qwen2_moe", 32), ("glm4_moe", 32)]
)
def test_all_experts_on_equals_dense(tmp_path, family, shared, tied, scale):
    dense = tiny_llama(tie_word_embeddings=tied)
    made = tiny_moe(
        tmp_path, dense, experts=8 if shared else 4, per_token=2, shared=shared, scale=scale, family=family
    )
    assert made.proof["max_logit_error"] < 1e-4 * made.proof["max_logit"]
    assert made.proof["reload_error"] < 2e-6
    assert made.model.config.model_type == family
    # the check of the step itself is not trusted here: the same by hand, on the saved model
    families.set_per_token(made.model, made.widths.experts)
    with torch.no_grad():
        for part in families.parts(made.model):
            part.router.weight.zero_()
            part.experts.down_proj.mul_(made.widths.experts / factor(scale, made.widths.experts))
            if family == "glm4_moe":  # its factor is in the configuration
                part.experts.down_proj.mul_(factor(scale, made.widths.experts))
                part.router.routed_scaling_factor = 1.0
    assert (logits(made.model, IDS) - logits(dense, IDS)).abs().max() < 1e-3


def factor(scale, experts, per_token=2):
    return {
        "none": 1, "times-k": per_token, "unit": per_token, "n-over-k": experts / per_token, "mean": experts, "norm": (experts * per_token) ** 0.5,
    }[scale]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "shared", "dense_layers"),
    [("qwen2_moe", 32, [1]), ("qwen2_moe", 32, [0, 2]), ("glm4_moe", 32, [0]), ("auto", 32, [2])],
)
def test_layers_left_dense(tmp_path, llama, family, shared, dense_layers):
    made = tiny_moe(tmp_path, llama, experts=8, shared=shared, family=family, dense_layers=dense_layers)
    found = [part.layer for part in families.parts(made.model)]
    assert found == [layer for layer in range(3) if layer not in dense_layers]
    gate = made.model.model.layers[dense_layers[0]].mlp.gate_proj.weight
    assert torch.equal(gate, llama.model.layers[dense_layers[0]].mlp.gate_proj.weight)
    with families.Routing(made.model) as routing:
        made.model(input_ids=IDS)
    assert sorted(routing.logits) == list(range(len(found)))


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_save_keeps_the_logits(tmp_path, llama, family):
    made = tiny_moe(
        tmp_path,
        llama,
        shared=0 if family == "mixtral" else 32,
        family=family,
        experts=4 if family == "mixtral" else 8,
    )
    before = logits(made.model, IDS)
    # read as bfloat16, not cast: casting would round the rotary frequencies too, which no checkpoint holds
    half = load.load_model(tmp_path / "moe" / "model", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    rounded = logits(half, IDS)
    again = load.load_model(tmp_path / "half")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again, IDS), rounded)
    # bfloat16 keeps 8 bits: the distributions stay close, bit equality is only with the rounded weights
    kl = functional.kl_div(
        rounded.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert float(kl) / IDS.shape[1] < 0.15


def test_a_wrong_conversion_fails_the_check(tmp_path, monkeypatch):
    from moesaic.experts import build

    right = build.fill

    def wrong(family, module, *arguments):
        right(family, module, *arguments)
        family.block(module)[1].down_proj[0, 0, 0] += 5.0

    monkeypatch.setattr(build, "fill", wrong)
    with pytest.raises(InputError, match="all experts on"):
        tiny_moe(tmp_path)
    assert not (tmp_path / "moe" / "model").exists()


def test_sizes_by_hand(tmp_path, llama):
    dense = size.count(llama)
    moe = size.count(tiny_moe(tmp_path, llama, shared=32, experts=4).model)
    routers = 3 * 4 * 48
    assert moe.total == dense.total + routers
    # 64 routed neurons of 3 * 48 weights each, half of them idle, in 3 layers
    assert moe.total - moe.active == 3 * 32 * 3 * 48
    assert dense.active == dense.total


def test_routing_matches_the_model(tmp_path):
    model = tiny_moe(tmp_path, shared=32).model
    with families.Routing(model) as routing:
        model(input_ids=IDS)
    assert sorted(routing.logits) == [0, 1, 2]
    assert routing.indices[0].shape == (48, 2)
    assert torch.equal(routing.logits[1].topk(2, dim=1).indices, routing.indices[1])
    families.set_per_token(model, 1)
    with families.Routing(model) as routing:
        model(input_ids=IDS)
    assert routing.indices[0].shape == (48, 1)


def test_the_family_follows_from_the_shape(llama):
    config = llama.config

    def name(wanted="auto", **shape):
        return families.choose(Shape(**{"experts": 8, "per_token": 2, "neurons": 8} | shape), config, wanted)[
            0
        ].name

    assert name() == "mixtral"
    assert name(shared=32) == "granitemoeshared"
    assert name(shared=32, dense_layers=(1,)) == "qwen2_moe"
    assert name(shared=32, bias=True) == "glm4_moe"
    assert name("glm4_moe", shared=32, dense_layers=(0,)) == "glm4_moe"
    _, reasons = families.choose(Shape(8, 2, 8, shared=32), config)
    assert reasons["mixtral"] == "no: it has no shared expert"
    assert reasons["granitemoeshared"].startswith("chosen")
    assert reasons["glm4_moe"].startswith("possible")
    with pytest.raises(
        InputError, match=r"experts\.family: mixtral cannot express this split: it has no shared expert"
    ):
        name("mixtral", shared=32)
    with pytest.raises(InputError, match="no architecture in transformers expresses"):
        name(dense_layers=(1,), bias=True)


def test_unsupported_parents_are_refused():
    from transformers import GPT2Config, LlamaConfig

    with pytest.raises(InputError, match="gpt2 is not supported"):
        families.check_parent(GPT2Config())
    with pytest.raises(InputError, match="mlp_bias"):
        families.check_parent(LlamaConfig(mlp_bias=True))


def test_lazy_layers_are_the_model_layers(tmp_path, llama):
    llama.save_pretrained(tmp_path / "whole")
    llama.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("whole", "shards"):
        lazy = LazyModel(tmp_path / name)
        hidden = lazy.embedding()[IDS]
        for index in range(lazy.layers):
            hidden = lazy.layer(index)(hidden, position_embeddings=lazy.positions(24), attention_mask=None)
        norm, head = lazy.head()
        assert torch.allclose(norm(hidden) @ head.T, logits(llama, IDS), atol=1e-5)


def test_damaged_and_missing_shards_are_named(tmp_path, llama):
    llama.save_pretrained(tmp_path, max_shard_size="100KB")
    last = max(tmp_path.glob("*.safetensors"))
    last.unlink()
    with pytest.raises(InputError, match=last.name):
        LazyModel(tmp_path)
    llama.save_pretrained(tmp_path)
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    llama.save_pretrained(tmp_path)
    for file in tmp_path.glob("*index.json"):
        file.unlink()
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        LazyModel(tmp_path).layer(1)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_parent_is_proved_in_float32(tmp_path, family):
    """Close router scores pick other experts in bfloat16: the stock model's own bfloat16 logits prove nothing, its float32 ones do."""
    parent = tiny_llama(num_hidden_layers=6).to(torch.bfloat16)
    shared = 0 if family == "mixtral" else 32
    made = tiny_moe(tmp_path, parent, shared=shared, family=family, experts=4 if family == "mixtral" else 8)
    assert made.model.dtype == torch.bfloat16
    assert made.proof["reload_error"] < 1e-4 * made.proof["max_logit"]


def test_other_weights_than_those_proved_are_refused(tmp_path, monkeypatch):
    real = load.load_model

    def damaged(*args, **kwargs):
        model = real(*args, **kwargs)
        next(families.parts(model)).experts.down_proj.data[0] *= 1.02
        return model

    monkeypatch.setattr("moesaic.experts.construct.load.load_model", damaged)
    with pytest.raises(InputError, match="computes other logits"):
        tiny_moe(tmp_path, tiny_llama().to(torch.bfloat16))
