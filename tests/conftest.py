"""Shared fixtures: tiny random models of the real architectures, float32, one thread."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import pytest
import torch

VOCABULARY = 512


def tiny_llama(seed: int = 0, **changes):
    """A random LLaMA of about 0.2 M parameters whose weights are large enough to give varied logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
            "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True, "initializer_range": 0.2,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        }
        | changes
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture
def experts_settings():
    """schema.Experts as a dict, for a split of 96 neurons."""
    from moesaic.schema import Experts

    return Experts(experts=4, per_token=2, shared=32).model_dump(mode="json")
