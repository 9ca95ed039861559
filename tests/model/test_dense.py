"""Parents that no MoE could be made of are refused by name, before their weights are fetched or read."""

import json

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_llama

from moesaic.errors import InputError
from moesaic.model import dense, load

WIDTH, FFN, LAYERS, HEADS, VOCABULARY = 32, 64, 2, 4, 64


def write_gguf(path, keys=(), factors=None, kind="llama", more=(), without=()):
    """A tiny random model. Args: keys: (name, value) of further metadata. factors: of the rotary frequencies. more, without: tensors."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("tiny")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*" \n0123456789", "01", *(f"t{number}" for number in range(VOCABULARY - 13))])
    writer.add_token_merges(["0 1"])
    writer.add_token_types([1] * VOCABULARY)
    for name, value in keys:
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](name, value)
    draw = np.random.default_rng(0)

    def tensor(name, *shape):
        if name in without:
            return
        writer.add_tensor(name, draw.normal(0, 0.3, shape).astype(np.float32))

    tensor("token_embd.weight", VOCABULARY, WIDTH)
    tensor("output_norm.weight", WIDTH)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{layer}.{name}.weight", WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            tensor(f"blk.{layer}.{name}.weight", FFN, WIDTH)
        tensor(f"blk.{layer}.ffn_down.weight", WIDTH, FFN)
    for name, *shape in more:
        tensor(name, *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"kind": "gguf", "path": str(path)}


@pytest.mark.parametrize(
    ("keys", "factors", "told"),
    [
        ([], [1, 1, 8, 32], "rope_freqs.weight"),
        ([("llama.rope.scaling.type", "yarn"), ("llama.rope.scaling.factor", 4.0)], None, "yarn"),
        ([("llama.rope.scaling.type", "linear"), ("llama.rope.scaling.factor", 2.0)], None, "linear"),
        ([("llama.rope.scaling.factor", 2.0)], None, "linear"),
        ([("llama.rope.scale_linear", 4.0)], None, "linear"),
    ],
)
def test_scaled_rotary_frequencies_of_a_gguf_are_refused(tmp_path, monkeypatch, keys, factors, told):
    at = write_gguf(tmp_path / "m.gguf", keys, factors)
    message = rf"m\.gguf: its rotary frequencies are scaled \({told}\).*Hugging Face format"
    with pytest.raises(InputError, match=message):
        dense.parent_config(at)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda **_: pytest.fail("read"))
    with pytest.raises(InputError, match=message):
        dense._load(at, None, torch.float32)


@pytest.mark.parametrize(
    ("keys", "factors"),
    [
        ([], None),
        ([], [1, 1, 1, 1]),
        ([("llama.rope.scaling.type", "none"), ("llama.rope.scaling.factor", 2.0)], None),
        ([("llama.rope.scaling.type", "linear"), ("llama.rope.scaling.factor", 1.0)], None),
    ],
)
def test_a_gguf_without_scaling_is_taken(tmp_path, keys, factors):
    found = dense.parent_config(write_gguf(tmp_path / "m.gguf", keys, factors))
    assert (found.hidden_size, found.rope_parameters["rope_theta"]) == (WIDTH, 500_000.0)
    assert found.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([("blk.0.ffn_up_exps.weight", 2, FFN, WIDTH)], r"has experts \(blk\.0\.ffn_up_exps\.weight\)"),
        ([("blk.1.attn_q.bias", WIDTH)], r"has biases \(blk\.1\.attn_q\.bias\)"),
    ],
)
def test_a_gguf_of_another_kind_is_refused(tmp_path, more, told):
    with pytest.raises(InputError, match=rf"m\.gguf {told}"):
        dense.parent_config(write_gguf(tmp_path / "m.gguf", more=more))


def test_a_gguf_without_all_weights_is_refused(tmp_path):
    at = write_gguf(tmp_path / "m.gguf", without=["blk.1.ffn_up.weight"])
    with pytest.raises(InputError, match=r"m\.gguf lacks weights .*layers\.1\.mlp\.up_proj"):
        dense._load(at, None, torch.float32)


def test_token_ids_of_a_gguf_are_the_configurations(tmp_path):
    """The defaults, 1 and 2, are other models': generation would end at an ordinary token."""
    keys = [("tokenizer.ggml.bos_token_id", 40), ("tokenizer.ggml.eos_token_id", 41)]
    model, tokenizer = dense._load(write_gguf(tmp_path / "m.gguf", keys), None, torch.float32)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (40, 41)
    for found in (model.config, model.generation_config):
        assert (found.bos_token_id, found.eos_token_id) == (40, 41)


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["ĊĊ", "1", "ĠĠ", "2"]), ("gpt-2", ["Ċ", "Ċ", "1", "Ġ", "Ġ2"])])  # fmt: skip
def test_text_is_split_as_in_training(tmp_path, pre, pieces):
    _, tokenizer = dense._load(
        write_gguf(tmp_path / "m.gguf", [("tokenizer.ggml.pre", pre)]), None, torch.float32
    )
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("\n\n1  2")
    assert [piece for piece, _ in found] == pieces


def test_an_unknown_pre_tokenizer_is_named(tmp_path, caplog):
    at = write_gguf(tmp_path / "m.gguf", [("tokenizer.ggml.pre", "viking")])
    with pytest.raises(InputError, match=r"model\.tokenizer: m\.gguf was made with the pre-tokenizer viking"):
        dense._load(at, None, torch.float32)
    for name, keys in (("n.gguf", []), ("d.gguf", [("tokenizer.ggml.pre", "default")])):
        dense._load(write_gguf(tmp_path / name, keys), None, torch.float32)
        assert f"{name} does not name its pre-tokenizer" in caplog.text


@pytest.mark.parametrize("own", [False, True])
def test_a_head_beside_tied_embeddings(own, caplog):
    model = tiny_llama(tie_word_embeddings=True)
    head = model.get_input_embeddings().weight.detach().clone() + (0.5 if own else 0.0)
    model.lm_head.weight = torch.nn.Parameter(head)
    dense._check_tied(model)
    assert model.config.tie_word_embeddings is not own
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is not own
    assert ("another matrix than the embeddings" in caplog.text) is own


def test_other_architectures_and_damaged_files_of_gguf_are_named(tmp_path):
    with pytest.raises(InputError, match="architecture qwen2 is not supported"):
        dense.parent_config(write_gguf(tmp_path / "q.gguf", kind="qwen2"))
    (tmp_path / "d.gguf").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"d\.gguf cannot be read as GGUF"):
        dense.parent_config({"kind": "gguf", "path": str(tmp_path / "d.gguf")})


WRONG = [
    ({"model_type": "qwen3"}, "architecture qwen3 is not supported; supported: llama, mistral"),
    ({"model_type": "mistral3"}, "architecture mistral3 is not supported"),
    ({"model_type": "invented"}, "architecture invented is not supported"),
    (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        r"config\.json: quantised weights \(gptq\)",
    ),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, r"\(bitsandbytes\)"),
    ({"quantization_config": {"quant_method": "compressed-tensors"}}, r"\(compressed-tensors\)"),
    ({"sliding_window": 128, "model_type": "mistral"}, "sliding_window"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "code of its own"),
    (
        {"rope_scaling": {"type": "linear"}},
        r"model\.at: .*config\.json is no configuration that transformers reads.*factor",
    ),
    (
        {"hidden_size": "forty"},
        r"model\.at: .*config\.json is no configuration that transformers reads.*hidden_size",
    ),
]


def parent(folder, changes):
    tiny_llama().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_folder_is_refused_by_its_configuration(tmp_path, monkeypatch, changes, message):
    at = {"kind": "folder", "path": str(parent(tmp_path / "parent", changes))}
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("read"))
    with pytest.raises(InputError, match=message):
        dense._load(at, None, torch.float32)
    with pytest.raises(InputError, match=message):
        dense.parent_config(at)


def test_a_missing_shard_is_named(tmp_path):
    """An interrupted copy; also where the list of the shards itself is cut off."""
    tiny_llama().save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert load.load_model(tmp_path, "model.at").config.hidden_size == 48
    shards[1].unlink()
    with pytest.raises(InputError, match=rf"model\.at: .* lacks the shard {shards[1].name} \(1 missing\)"):
        load.load_model(tmp_path, "model.at")
    listed = tmp_path / "model.safetensors.index.json"
    listed.write_text(listed.read_text()[:40])
    with pytest.raises(InputError, match=r"model\.at: damaged weights in .*index\.json"):
        load.load_model(tmp_path, "model.at")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose repository is the folder `repository`; what was asked of it."""
    from huggingface_hub.utils import filter_repo_objects

    asked = []

    def download(repository, revision, allow_patterns, ignore_patterns):
        folder = tmp_path / "repository"
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        names = list(
            filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        )
        asked.append(sorted(names))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


AT = {"kind": "hub", "repository": "some/model", "revision": None}


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_of_a_hub_only_the_configuration_is_fetched_first(tmp_path, hub, changes, message):
    parent(tmp_path / "repository", changes)
    with pytest.raises(InputError, match=message):
        dense._load(AT, None, torch.float32)
    assert hub == [["config.json"]]


def test_no_weights_are_fetched_twice(tmp_path, hub, monkeypatch):
    folder = parent(tmp_path / "repository", {})
    (folder / "original").mkdir()
    for name in ("consolidated.safetensors", "consolidated.00.pth", "tokenizer.model", "x.bin"):
        (folder / name).touch()
    for name in ("consolidated.00.pth", "params.json", "tokenizer.model"):
        (folder / "original" / name).touch()
    monkeypatch.setattr(load, "load_model", lambda *_: None)
    monkeypatch.setattr(load, "load_tokenizer", lambda *_: None)
    dense._load(AT, None, torch.float32)
    wanted = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.model"]
    assert hub == [["config.json"], wanted]
    assert dense.parent_config(AT).hidden_size == 48
