"""Write a converted MoE as GGUF for llama.cpp: `mixtral` as its `llama` with experts, `granitemoeshared` as its `granitemoe`, `glm4_moe` as its `glm4moe`.

Names and metadata keys are those of the `gguf` package. Queries and keys are stored in the order of the rotary pairs that llama.cpp's class has:
for the first two, rows of a head (x1 of all pairs, then x2 of all pairs) become (x1 x2) of the first pair, of the second, ...; its glm4moe has
transformers' order, and biases on queries, keys and values, which are written as zeros. Tensors are made and written one after the other.

Shapes: D model width, E experts, M neurons of an expert, S shared neurons, V vocabulary.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.model import families, load
from moesaic.model.adapters import beside
from moesaic.model.depth import saved

ARCHITECTURES = {"mixtral": "llama", "granitemoeshared": "granitemoe", "glm4_moe": "glm4moe"}
"""Ours -> llama.cpp's. Its qwen2moe does not divide the chosen experts' weights by their sum, and has no layers left dense."""
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {SPLIT % "{1,3}": "llama-bpe", SPLIT % "": "qwen2"}
"""Regular expression of a tokenizer's pre-tokenizer -> llama.cpp's name."""
PLAIN = {"F32": np.float32, "F16": np.float16}
"""Stored types that numpy has."""
NORMAL, CONTROL, USER = 1, 3, 4
"""Token types of GGUF."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    exact: bool = False
    """Always float32: norms and routers, which are small and sensitive."""


def run(folder: Path, out: Path, dtype: str = "f16") -> dict[str, Any]:
    """Write `folder`'s model and tokenizer to the file `out`. Args: dtype: f32, f16, bf16 or q8_0.

    Returns:
        architecture, tensors, bytes.

    Raises:
        InputError: a family, width or tokenizer that llama.cpp has no place for, or an output that exists.
    """
    import gguf

    files.refuse_existing(out)
    kind = load.check_folder(folder, "model").get("model_type")
    if kind not in ARCHITECTURES:
        if kind not in families.FAMILIES and kind != saved.MODEL_TYPE:
            raise InputError(
                f"{folder}: {kind} has no experts: llama.cpp's own convert_hf_to_gguf.py writes it"
            )
        first = (
            "`moesaic fold` first"
            if kind == saved.MODEL_TYPE
            else "`moesaic merge` and llama.cpp's own convert_hf_to_gguf.py"
        )
        raise InputError(
            f"{folder}: llama.cpp has no architecture that computes {kind} exactly; possible: {', '.join(ARCHITECTURES)} (experts.family), or {first}"
        )
    beside.refuse_half(folder, "GGUF")
    model = load.load_model(folder)
    vocabulary = tokens(folder, model.config.vocab_size)
    wanted = gguf.GGMLQuantizationType[dtype.upper()]
    entries = list(tensors(model))
    for item in entries:
        if dtype == "q8_0" and not item.exact and item.shape[-1] % 32:
            raise InputError(
                f"q8_0: {item.name} has rows of {item.shape[-1]}, no multiple of 32; take f16 or bf16"
            )
    with files.atomic_path(out) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURES[kind])
        describe(writer, model.config)
        for key, value in vocabulary.items():
            getattr(writer, f"add_{key}")(value)
        for item in entries:
            stored = gguf.GGMLQuantizationType.F32 if item.exact else wanted
            size = gguf.quant_shape_to_byte_shape(item.shape, stored)
            bytes_as = np.dtype(PLAIN.get(stored.name, np.uint8))
            shape = item.shape if stored.name in PLAIN else size
            writer.add_tensor_info(item.name, shape, bytes_as, int(np.prod(size)), stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for item in entries:
            stored = gguf.GGMLQuantizationType.F32 if item.exact else wanted
            values = item.make().detach().float().contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(values, stored))
        writer.close()
    return {"architecture": ARCHITECTURES[kind], "tensors": len(entries), "bytes": out.stat().st_size}


def describe(writer: Any, config: Any) -> None:
    """Metadata of the architecture."""
    rope = dict(config.rope_parameters)
    if rope.get("rope_type", "default") != "default":
        raise InputError(
            f"GGUF: rope_type {rope['rope_type']} is not written here; use llama.cpp's own converter"
        )
    writer.add_name(config.model_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "glm4_moe":
        import gguf

        writer.add_expert_count(config.n_routed_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        return
    writer.add_expert_count(config.num_local_experts)
    if config.model_type == "granitemoeshared":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
        if config.shared_intermediate_size:
            writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def tensors(model: Any) -> Iterator[Entry]:
    """Every tensor of the file, in order."""
    config, inner = model.config, model.model
    parts = {part.layer: part for part in families.parts(model)}
    glm = config.model_type == "glm4_moe"
    yield entry("token_embd", inner.embed_tokens.weight)
    for index, layer in enumerate(inner.layers):
        at, attention, part = f"blk.{index}", layer.self_attn, parts.get(index)
        yield entry(f"{at}.attn_norm", layer.input_layernorm.weight, exact=True)
        for name, module, heads in (
            ("q", attention.q_proj, config.num_attention_heads),
            ("k", attention.k_proj, config.num_key_value_heads),
        ):
            if glm:
                yield entry(f"{at}.attn_{name}", module.weight)
                continue
            make = partial(pairs, module.weight, heads, config.head_dim)
            yield Entry(f"{at}.attn_{name}.weight", tuple(module.weight.shape), make)
        yield entry(f"{at}.attn_v", attention.v_proj.weight)
        yield entry(f"{at}.attn_output", attention.o_proj.weight)
        norm = "post_attention_norm" if glm else "ffn_norm"
        yield entry(f"{at}.{norm}", layer.post_attention_layernorm.weight, exact=True)
        if glm:
            for name, module in (("q", attention.q_proj), ("k", attention.k_proj), ("v", attention.v_proj)):
                zeros = module.weight.new_zeros(len(module.weight))
                yield entry(f"{at}.attn_{name}", zeros, exact=True, kind="bias")
        if part is None:
            for name in ("gate", "up", "down"):
                yield entry(f"{at}.ffn_{name}", getattr(layer.mlp, f"{name}_proj").weight)
            continue
        yield entry(f"{at}.ffn_gate_inp", part.router.weight, exact=True)
        if glm:
            yield entry(f"{at}.exp_probs_b", part.router.e_score_correction_bias, exact=True, kind="bias")
        gate_EMD, up_EMD = part.experts.gate_up_proj.chunk(2, dim=1)
        yield entry(f"{at}.ffn_gate_exps", gate_EMD)
        yield entry(f"{at}.ffn_up_exps", up_EMD)
        yield entry(f"{at}.ffn_down_exps", part.experts.down_proj)
        if part.shared is not None and part.family.get_shared is not None:
            for name, weight in zip(("gate", "up", "down"), part.family.get_shared(part.shared), strict=True):
                if weight.numel():
                    yield entry(f"{at}.ffn_{name}_shexp", weight)
    yield entry("output_norm", inner.norm.weight, exact=True)
    if not config.tie_word_embeddings:
        yield entry("output", model.lm_head.weight)


def entry(name: str, weight: Tensor, exact: bool = False, kind: str = "weight") -> Entry:
    """A tensor that is stored as the model holds it."""
    return Entry(f"{name}.{kind}", tuple(weight.shape), lambda: weight, exact)


def pairs(weight_ID: Tensor, heads: int, head: int) -> Tensor:
    """Rows of each head from (halves) to (neighbours), see the module's docstring."""
    return weight_ID.view(heads, 2, head // 2, -1).transpose(1, 2).reshape(weight_ID.shape)


def pre_tokenizer(steps: list[dict[str, Any]]) -> str | None:
    """llama.cpp's name of a list of steps; None where another name's rules would cut the text elsewhere."""
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    plain = last.get("use_regex", True)
    match [step.get("type") for step in before]:
        case []:
            return "gpt-2" if plain else None
        case ["Digits"]:
            return "smollm" if plain and before[0].get("individual_digits") else None
        case ["Split"]:
            step = before[0]
            isolated = step.get("behavior", "Isolated") == "Isolated" and not step.get("invert")
            return PATTERNS.get(step["pattern"].get("Regex")) if isolated and not plain else None
    return None


def tokens(folder: Path, size: int) -> dict[str, Any]:
    """Metadata of a byte-level BPE tokenizer, by the names of the writer's methods.

    Raises:
        InputError: another kind of tokenizer, or more tokens than the model has rows for.
    """
    path = folder / "tokenizer.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: missing ({error.strerror}); the model folder needs its tokenizer"
        ) from error
    pre = raw.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    kinds = [step.get("type") for step in steps]
    if raw["model"]["type"] != "BPE" or "ByteLevel" not in kinds or raw.get("normalizer"):
        raise InputError(
            f"{path}: only byte-level BPE tokenizers without a normalizer are written as GGUF; use llama.cpp's own converter for this one"
        )
    name = pre_tokenizer(steps)
    if name is None:
        raise InputError(f"{path}: its pre-tokenizer has no name in llama.cpp that is known here: {steps}")
    tokenizer = load.load_tokenizer(folder)
    special = {item["id"]: CONTROL if item["special"] else USER for item in raw["added_tokens"]}
    words = {index: word for word, index in tokenizer.get_vocab().items()}
    if words and max(words) >= size:
        raise InputError(
            f"{path}: token {max(words)}, but the model has {size} rows; the tokenizer is another model's"
        )
    merges = [item if isinstance(item, str) else " ".join(item) for item in raw["model"]["merges"]]
    found: dict[str, Any] = {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": name,
        "token_list": [words.get(index, f"<unused {index}>") for index in range(size)],
        "token_types": [special.get(index, NORMAL if index in words else USER) for index in range(size)],
        "token_merges": merges,
        "add_bos_token": tokenizer.bos_token_id is not None
        and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id],
    }
    for key in ("bos", "eos", "pad"):
        if getattr(tokenizer, f"{key}_token_id") is not None:
            found[f"{key}_token_id"] = getattr(tokenizer, f"{key}_token_id")
    if tokenizer.chat_template:
        found["chat_template"] = tokenizer.chat_template
    return found
