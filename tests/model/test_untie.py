"""Untied checkpoints compute what the tied ones do, in one file and in shards, and hold the output matrix."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_llama, tiny_moe
from transformers import AutoModelForCausalLM

from moesaic.model import untie

IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_the_same_logits_from_a_matrix_of_its_own(tmp_path, shard, link):
    made = tiny_moe(tmp_path, family="glm4_moe", shared=32, experts=4, dense_layers=[0])
    model = made.model.eval()
    model.save_pretrained(tmp_path / "tied", max_shard_size=shard)
    assert len(list((tmp_path / "tied").glob("*.safetensors"))) > 1 or shard == "1GB"
    assert untie.needed(tmp_path / "tied")
    untie.write(tmp_path / "tied", tmp_path / "untied", link)
    assert not untie.needed(tmp_path / "untied")
    head = load_file(tmp_path / "untied" / untie.HEAD)["lm_head.weight"]
    assert torch.equal(head, model.lm_head.weight)
    read, told = AutoModelForCausalLM.from_pretrained(tmp_path / "untied", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert read.lm_head.weight.data_ptr() != read.model.embed_tokens.weight.data_ptr()
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    with torch.no_grad():
        assert torch.equal(read.eval()(IDS).logits, before.eval()(IDS).logits)


def test_an_untied_checkpoint_is_copied_as_it_is(tmp_path):
    tiny_llama(tie_word_embeddings=False).save_pretrained(tmp_path / "one")
    untie.write(tmp_path / "one", tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()


def test_only_families_whose_class_does_not_know_tying_need_it(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    assert untie.tied(tmp_path / "dense")
    assert not untie.needed(tmp_path / "dense")
