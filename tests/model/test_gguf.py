"""A converted MoE as GGUF: llama.cpp itself gives the tokens and probabilities that transformers gives."""

import json
import subprocess
import sys

import gguf
import project
import pytest
import torch
from tiny import tiny_llama, tiny_moe

from moesaic import cli
from moesaic.errors import InputError
from moesaic.flow import manifest
from moesaic.model import families, load, to_gguf

PROMPT = "def count(words):\n    return 12 + len(words)  # naïve"
ASK = """
import json, sys
import xllamacpp
wanted = xllamacpp.CommonParams()
wanted.model.path, wanted.n_ctx, wanted.n_parallel, wanted.n_gpu_layers = sys.argv[1], 256, 1, 0
wanted.cpuparams.n_threads = 1
wanted.cache_type_k = wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
wanted.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(wanted)
asked = {"prompt": sys.argv[2], "n_predict": 24, "temperature": 0, "n_probs": 3, "cache_prompt": False}
given = server.handle_completions(asked)
given = given if isinstance(given, dict) else json.loads(given)
print("GIVEN" + json.dumps([given["choices"][0]["logprobs"]["content"], given["usage"]["prompt_tokens"]]))
"""


def llama_cpp(path):
    """Greedy tokens of llama.cpp, with log-probabilities, and the number of tokens of the prompt."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(path), PROMPT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("GIVEN")]
    found, prompt = json.loads(line.removeprefix("GIVEN"))
    return [(item["id"], item["logprob"]) for item in found], prompt


@pytest.fixture(scope="module")
def tokenizer():
    return project.tokenizer_of_library()


def converted(folder, tokenizer, **settings):
    folder.mkdir()
    tiny_moe(folder, tiny_llama(hidden_size=64, num_attention_heads=8, num_key_value_heads=4), **settings)
    tokenizer.save_pretrained(folder / "moe/model")
    return folder / "moe/model"


SIZES = {
    "mixtral": {"experts": 3, "per_token": 2},
    "granitemoeshared": {"shared": 32, "experts": 2, "per_token": 1},
    "glm4_moe": {
        "shared": 32, "experts": 4, "per_token": 2, "family": "glm4_moe", "dense_layers": [0], "router": "least-squares", "balance": 0.7,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", SIZES)
def test_llama_cpp_gives_what_transformers_gives(tmp_path, tokenizer, family):
    folder = converted(tmp_path / "m", tokenizer, **SIZES[family])
    cli.main(["gguf", str(folder), str(tmp_path / "m.gguf"), "--dtype", "f32"])
    given, prompt = llama_cpp(tmp_path / "m.gguf")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    assert prompt == ids.shape[1]
    model = load.load_model(folder)
    if family == "glm4_moe":
        biases = [part.router.e_score_correction_bias for part in families.parts(model)]
        assert len(biases) == 2
        assert all(bias.abs().max() > 0 for bias in biases)
    out = model.generate(
        ids, max_new_tokens=24, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    row = out.sequences[0, ids.shape[1] :].tolist()
    at = 0
    for token, logprob in given[:8]:
        # a piece of an unfinished UTF-8 character is not listed by llama.cpp
        at += row[at:].index(token)
        assert float(out.logits[at][0].log_softmax(dim=-1)[token]) == pytest.approx(logprob, abs=1e-3)
        at += 1
    assert at >= 8


@pytest.mark.parametrize(("dtype", "error"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 1e-2)])
def test_smaller_numbers(tmp_path, tokenizer, dtype, error):
    """Each tensor read back; norms and routers stay exact; llama.cpp runs it."""
    folder = converted(tmp_path / "m", tokenizer, **SIZES["granitemoeshared"])
    found = {}
    for name in ("f32", dtype):
        cli.main(["gguf", str(folder), str(tmp_path / f"{name}.gguf"), "--dtype", name])
        read = gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors
        found[name] = {item.name: gguf.quants.dequantize(item.data, item.tensor_type) for item in read}
    for name, exact in found["f32"].items():
        apart = abs(found[dtype][name] - exact).max() / abs(exact).max()
        assert apart == 0 if "norm" in name or "gate_inp" in name else 0 < apart < error, name
    assert len(llama_cpp(tmp_path / f"{dtype}.gguf")[0]) > 4


def test_what_has_no_place_is_refused_and_nothing_is_written(tmp_path, tokenizer):
    folder = converted(tmp_path / "a", tokenizer, shared=32, experts=2, per_token=1, family="qwen2_moe")
    with pytest.raises(InputError, match=r"no architecture that computes qwen2_moe exactly"):
        to_gguf.run(folder, tmp_path / "a.gguf")
    folder = converted(tmp_path / "b", tokenizer, experts=6, per_token=2)  # experts of 16 neurons
    with pytest.raises(InputError, match=r"q8_0: blk.0.ffn_down_exps.weight has rows of 16"):
        to_gguf.run(folder, tmp_path / "b.gguf", "q8_0")
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["type"] = "Unigram"
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"tokenizer.json: only byte-level BPE"):
        to_gguf.run(folder, tmp_path / "b.gguf")
    (tmp_path / "c.gguf").touch()
    with pytest.raises(InputError, match=r"c.gguf exists already"):
        to_gguf.run(folder, tmp_path / "c.gguf")
    assert not (tmp_path / "a.gguf").exists()
    assert not (tmp_path / "b.gguf").exists()


def test_half_of_what_was_trained_is_refused(tmp_path, tokenizer):
    """A step's adapter lies beside its model, not in it; a linear one is in the weights already."""
    folder = converted(tmp_path / "m", tokenizer, experts=3, per_token=2)
    facts = {"method": "lateral", "merged": False}
    manifest.write(folder.parent, "tune", 1, {}, {}, ["model"], {"adapter": facts})
    with pytest.raises(InputError, match="only whole with its adapter"):
        to_gguf.run(folder, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
    manifest.write(folder.parent, "tune", 1, {}, {}, ["model"], {"adapter": facts | {"merged": True}})
    to_gguf.run(folder, tmp_path / "x.gguf")


def test_rotary_pairs_are_neighbours():
    weight = torch.arange(8.0)[:, None]
    assert to_gguf.pairs(weight, 2, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
QWEN = {"type": "Split", "pattern": {"Regex": to_gguf.SPLIT % ""}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([BYTES], "gpt-2"),
        ([DIGITS, BYTES], "smollm"),
        ([QWEN, BYTES | {"use_regex": False}], "qwen2"),
        ([DIGITS | {"individual_digits": False}, BYTES], None),
        ([DIGITS, BYTES | {"add_prefix_space": True}], None),
        ([QWEN, DIGITS, BYTES | {"use_regex": False}], None),
        ([QWEN | {"pattern": {"Regex": "[0-9]"}}, BYTES | {"use_regex": False}], None),
        ([QWEN | {"invert": True}, BYTES | {"use_regex": False}], None),
    ],
)
def test_a_pre_tokenizer_has_its_name_or_none(steps, name):
    assert to_gguf.pre_tokenizer(steps) == name
