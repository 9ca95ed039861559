"""A checkpoint with every tensor that vLLM's class of its architecture asks for. Transformers computes the same from both.

vLLM's classes do not read all of config.json, and compute with memory that nobody filled where a tensor is not in the files. Measured with 0.32:

- `glm4_moe` asks no `tie_word_embeddings`: with tied embeddings the logits come from an empty output matrix, 6.4 nats a token off;
- `qwen2_moe` asks no `qkv_bias`: without biases queries, keys and values get random ones, 0.3 nats a token off on a tiny model.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from moesaic.flow import files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MORE = "model-for-vllm.safetensors"
"""What is added."""
EMBEDDINGS = "model.embed_tokens.weight"


def missing(folder: Path) -> dict[str, Any]:
    """Changes of the configuration that tell transformers of the tensors that vLLM misses; empty where it misses none."""
    config = files.read_json(folder / "config.json")
    if config["model_type"] == "glm4_moe" and config.get("tie_word_embeddings", False):
        return {"tie_word_embeddings": False}
    if config["model_type"] == "qwen2_moe" and not config.get("qkv_bias", True):
        return {"qkv_bias": True}
    return {}


def write(folder: Path, out: Path, link: bool = False) -> None:
    """Write the checkpoint of `folder` to the new folder `out`, with what is missing; one that misses nothing is copied as it is.

    Args:
        link: point to the files that stay as they are, instead of copying them.
    """
    out.mkdir(parents=True)
    names = {path.name: path.name for path in folder.iterdir() if path.is_file()}
    changes = missing(folder)
    if changes:
        if SINGLE in names:  # where a file has this name, transformers reads no other
            names[SINGLE] = "model-00001-of-00001.safetensors"
        index = _index(folder, names.get(SINGLE, ""))
        config = files.read_json(folder / "config.json")
        if "tie_word_embeddings" in changes:
            more = {
                "lm_head.weight": _embeddings(
                    folder, SINGLE if SINGLE in names else index["weight_map"][EMBEDDINGS]
                )
            }
        else:
            more = _zero_biases(config)
        save_file(more, out / MORE, {"format": "pt"})
        index["weight_map"] |= dict.fromkeys(more, MORE)
        index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in more.values())
        files.write_json(out / INDEX, index)
        files.write_json(out / "config.json", config | changes)
        names = {name: new for name, new in names.items() if name not in (INDEX, "config.json")}
    for name, new in names.items():
        if link:
            os.symlink((folder / name).resolve(), out / new)
        else:
            shutil.copyfile(folder / name, out / new)


def _embeddings(folder: Path, name: str) -> Tensor:
    with safe_open(folder / name, "pt") as file:
        found: Tensor = file.get_tensor(EMBEDDINGS)
    return found


def _zero_biases(config: dict[str, Any]) -> dict[str, Tensor]:
    """Of queries, keys and values in all layers."""
    head = config["hidden_size"] // config["num_attention_heads"]
    heads = {
        "q": config["num_attention_heads"],
        "k": config["num_key_value_heads"],
        "v": config["num_key_value_heads"],
    }
    kind = getattr(torch, config.get("dtype", "float32"))
    return {
        f"model.layers.{layer}.self_attn.{name}_proj.bias": torch.zeros(count * head, dtype=kind)
        for layer in range(config["num_hidden_layers"])
        for name, count in heads.items()
    }


def _index(folder: Path, single: str) -> dict[str, Any]:
    """The checkpoint's index, or one that lists its only file under a new name."""
    if not single:
        found: dict[str, Any] = files.read_json(folder / INDEX)
        return found
    path = folder / SINGLE
    with safe_open(path, "pt") as file:
        places = dict.fromkeys(file.keys(), single)
    return {"metadata": {"total_size": path.stat().st_size}, "weight_map": places}
