"""A tiny random model of a real architecture."""

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
