"""A checkpoint whose output matrix is a tensor of its own, for engines whose class of an architecture does not know tied embeddings.

vLLM's class of `glm4_moe` is one: it asks no `tie_word_embeddings` and would compute logits with a matrix that nobody loaded (measured with 0.32: 6.4 nats a
token off). Transformers computes the same from both.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD = "lm_head.safetensors"
UNKNOWN_TO_VLLM = ("glm4_moe",)
"""Families that are served untied."""


def tied(folder: Path) -> bool:
    """Whether the checkpoint's output matrix is its embedding matrix."""
    return bool(_config(folder).get("tie_word_embeddings", False))


def needed(folder: Path) -> bool:
    """Whether vLLM needs the checkpoint untied."""
    return tied(folder) and _config(folder)["model_type"] in UNKNOWN_TO_VLLM


def write(folder: Path, out: Path, link: bool = False) -> None:
    """Write the checkpoint of `folder` to the new folder `out`, untied; one that is untied already is copied as it is.

    Args:
        link: point to the files that stay as they are, instead of copying them.
    """
    out.mkdir(parents=True)
    names = {path.name: path.name for path in folder.iterdir() if path.is_file()}
    if tied(folder):
        if SINGLE in names:  # where a file has this name, transformers reads no other
            names[SINGLE] = "model-00001-of-00002.safetensors"
        index = _index(folder, names.get(SINGLE, ""))
        embedding = folder / (SINGLE if SINGLE in names else index["weight_map"]["model.embed_tokens.weight"])
        with safe_open(embedding, "pt") as file:
            matrix_VD = file.get_tensor("model.embed_tokens.weight")
        save_file({"lm_head.weight": matrix_VD}, out / HEAD, {"format": "pt"})
        index["weight_map"]["lm_head.weight"] = HEAD
        index["metadata"]["total_size"] += matrix_VD.nbytes
        _write(out / INDEX, index)
        _write(out / "config.json", _config(folder) | {"tie_word_embeddings": False})
        names = {name: new for name, new in names.items() if name not in (INDEX, "config.json")}
    for name, new in names.items():
        if link:
            os.symlink((folder / name).resolve(), out / new)
        else:
            shutil.copyfile(folder / name, out / new)


def _index(folder: Path, single: str) -> dict[str, Any]:
    """The checkpoint's index, or one that lists its only file under a new name."""
    if not single:
        found: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return found
    path = folder / SINGLE
    with safe_open(path, "pt") as file:
        places = dict.fromkeys(file.keys(), single)
    return {"metadata": {"total_size": path.stat().st_size}, "weight_map": places}


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
