"""A dense parent out of a GGUF file, dequantised: what transformers would read wrongly from it is refused or mended.

Transformers takes the base of the rotary frequencies from GGUF and never their scaling; gives the token ids to the tokenizer and not to the configuration; draws
missing weights at random and leaves unknown ones out; and splits text plainly where it does not know the pre-tokenizer's name.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

from moesaic.errors import InputError
from moesaic.model import families
from moesaic.model import load as loading

log = logging.getLogger("moesaic.dense")

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Factors by rotary frequency."""
NOT_LLAMA = re.compile(
    r"_exps\.weight$|\.(attn_q|attn_k|attn_v|attn_qkv|attn_output|ffn_gate|ffn_up|ffn_down)\.bias$"
)
"""Tensors that a dense model without biases does not have."""
PRE = "tokenizer.ggml.pre"
PLAIN = ("gpt-2", "gpt2", "mpt", "olmo", "phi-2")
"""Pre-tokenizers that are GPT-2's."""
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
"""Those that cut every digit off first (llama.cpp: \\p{N}, then GPT-2's expression)."""


def config(path: Path) -> Any:
    """The configuration in a GGUF file; no weights are read. Raises InputError: not GGUF, or one that would be read wrongly."""
    from transformers import AutoConfig

    check(path)
    try:
        return AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    except (ValueError, IndexError, KeyError) as error:
        raise _unreadable(path, error) from error


def load(path: Path, tokenizer: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer. Args: tokenizer: a folder, or None for the file's own.

    Raises:
        InputError: a file that cannot be read, lacks weights, or whose pre-tokenizer is not known.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    pre = check(path)
    log.info("dequantising %s", path.name)
    where = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "local_files_only": True,
    }
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
        )
    except (ValueError, IndexError, KeyError) as error:
        raise _unreadable(path, error) from error
    loading.check_complete(info, f"model.at: {path.name}")
    # transformers refuses to save a quantised one
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if tokenizer:
        found = loading.load_tokenizer(Path(tokenizer))
    else:
        found = AutoTokenizer.from_pretrained(**where)
        _split_as_trained(found, pre, path)
    for name in ("bos_token_id", "eos_token_id"):
        for own in (model.config, model.generation_config):
            setattr(own, name, getattr(found, name))
    return model.eval(), found


def check(path: Path) -> str | None:
    """Refuse what would be read wrongly without a word; the name of the pre-tokenizer, where there is one.

    Llama 3.1 and later keep the scaling of the rotary frequencies as the tensor rope_freqs.weight; others as rope.scaling.* keys, where llama.cpp takes a factor
    without a type as linear.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        kind = reader.fields["general.architecture"].contents()
        known = {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.startswith(f"{kind}.rope.scal")
        }
        tensors = [
            item.name for item in reader.tensors if item.name in ROPE_TENSORS and (item.data != 1).any()
        ]
        other = sorted(item.name for item in reader.tensors if NOT_LLAMA.search(item.name))
        pre = reader.fields[PRE].contents() if PRE in reader.fields else None
    except (ValueError, IndexError, KeyError) as error:
        raise _unreadable(path, error) from error
    families.check_architecture(kind)
    scaling = known.get(f"{kind}.rope.scaling.type", "linear")
    factor = known.get(f"{kind}.rope.scaling.factor", known.get(f"{kind}.rope.scale_linear", 1.0))
    if tensors or not (scaling == "none" or (scaling == "linear" and factor in (0, 1))):
        raise InputError(
            f"model.at: {path.name}: its rotary frequencies are scaled ({tensors[0] if tensors else scaling}), which transformers does not read from GGUF; "
            "give the checkpoint in Hugging Face format (kind: folder or hub)"
        )
    if other:
        what = "experts" if "_exps" in other[0] else "biases"
        raise InputError(
            f"model.at: {path.name} has {what} ({other[0]}): parents are dense models without biases"
        )
    return pre


def _split_as_trained(tokenizer: Any, pre: str | None, path: Path) -> None:
    """Where transformers did not know the pre-tokenizer, the text is split as GPT-2's: right for some names, and for some after the digits are cut off."""
    from tokenizers import pre_tokenizers

    steps = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
    if not steps or steps["type"] != "ByteLevel" or not steps.get("use_regex", True) or pre in PLAIN:
        return
    if pre in DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif pre in (None, "default"):  # what converters of 2023 wrote, whatever the tokenizer was
        log.warning("%s does not name its pre-tokenizer (%s); text is split as GPT-2's", path.name, PRE)
    else:
        raise InputError(
            f"model.tokenizer: {path.name} was made with the pre-tokenizer {pre}, which is not known here: it would split text otherwise than in training; "
            "give a folder with the model's own tokenizer"
        )


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"model.at: {path} cannot be read as GGUF ({reason}); fetch it again or give another file"
    )
