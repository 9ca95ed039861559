"""Small random models of three architectures, and a tokenizer."""

import project
import torch
from tiny import tiny_llama
from transformers import (
    GraniteMoeSharedConfig,
    GraniteMoeSharedForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

TOK = project.tokenizer_of_library()


BASE = {
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}


def build(kind, vocab=512):
    torch.manual_seed(0)
    if kind == "llama":
        return tiny_llama(vocab_size=vocab)
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(vocab_size=vocab, sliding_window=None, **BASE)).eval()
    return GraniteMoeSharedForCausalLM(
        GraniteMoeSharedConfig(vocab_size=vocab, shared_intermediate_size=16, logits_scaling=2.0, **BASE)
    ).eval()


KINDS = ["llama", "mixtral", "granite"]
