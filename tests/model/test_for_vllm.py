"""Checkpoints for vLLM compute what the model does, in one file and in shards, and hold what vLLM's class asks for."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_llama, tiny_moe
from transformers import AutoModelForCausalLM

from moesaic.model import for_vllm

IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize("family", ["glm4_moe", "qwen2_moe"])
@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_the_same_logits_with_what_was_missing(tmp_path, shard, link, family):
    made = tiny_moe(tmp_path, family=family, shared=32, experts=4, dense_layers=[0])
    model = made.model.eval()
    model.save_pretrained(tmp_path / "plain", max_shard_size=shard)
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 1 or shard == "1GB"
    assert for_vllm.missing(tmp_path / "plain")
    for_vllm.write(tmp_path / "plain", tmp_path / "whole", link)
    assert not for_vllm.missing(tmp_path / "whole")
    more = load_file(tmp_path / "whole" / for_vllm.MORE)
    if family == "glm4_moe":
        assert torch.equal(more.pop("lm_head.weight"), model.lm_head.weight)
        assert not more
    else:
        assert len(more) == 3 * 3
        assert not any(tensor.any() for tensor in more.values())
    read, told = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    with torch.no_grad():
        assert torch.equal(read.eval()(IDS).logits, before.eval()(IDS).logits)


@pytest.mark.parametrize("family", ["mixtral", "granitemoeshared"])
def test_what_misses_nothing_is_copied_as_it_is(tmp_path, family):
    tiny_moe(tmp_path, family=family, shared=0 if family == "mixtral" else 32)
    folder = tmp_path / "moe" / "model"
    assert not for_vllm.missing(folder)
    for_vllm.write(folder, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


def test_an_untied_model_misses_nothing(tmp_path):
    tiny_moe(tmp_path, tiny_llama(tie_word_embeddings=False), family="glm4_moe", shared=32, dense_layers=[0])
    assert not for_vllm.missing(tmp_path / "moe" / "model")
