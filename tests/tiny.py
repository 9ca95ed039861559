"""A tiny random model of a real architecture."""

from pathlib import Path

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


def tiny_text(blocks: int = 10, length: int = 32, folds: int = 2, held_out: int = 2, seed: int = 0):
    """Random token ids as calibration text."""
    from moesaic.experts.calibration import Text

    ids = torch.randint(3, VOCABULARY, (blocks, length), generator=torch.Generator().manual_seed(seed))
    fitted = blocks - held_out
    fold = torch.tensor(sorted(i % folds for i in range(fitted)) + [-1] * held_out)
    return Text(ids, fold, fold.clamp_min(0), [f"domain {i}" for i in range(folds)])


def tiny_moe(folder: Path, model=None, text=None, seed: int = 0, **settings):
    """A tiny MoE made by the real conversion (construct.Converted); without calibration unless `settings` ask for it."""
    from moesaic.experts import construct
    from moesaic.model.lazy import LazyModel
    from moesaic.schema import Experts

    model = tiny_llama() if model is None else model
    model.save_pretrained(folder / "dense")
    defaults = {
        "split": "random",
        "router": "random",
        "experts": 4,
        "per_token": 2,
        "calibration": {"clusters": "domain"},
    }
    merged = Experts(**{**defaults, **settings}).model_dump(mode="json")
    (folder / "work").mkdir(exist_ok=True)
    text = tiny_text() if text is None else text
    return construct.convert(LazyModel(folder / "dense"), merged, text, seed, folder / "moe", folder / "work")


def loss_changes(model, text):
    """(block, layer, h dL/dh [T, F]) on the blocks that fits may use, by hooks and autograd on the ordinary model."""
    kept = {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _m, inputs, index=index: kept.update({index: inputs[0]})
        )
    for row in range(text.fitted):
        ids = text.ids_NT[row : row + 1]
        logits = model(input_ids=ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        gradients = torch.autograd.grad(loss, [kept[index] for index in sorted(kept)])
        for index, gradient in enumerate(gradients):
            yield row, index, (kept[index] * gradient)[0].detach()
