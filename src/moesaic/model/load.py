"""Load a model folder that a step wrote or a user gave: standard classes, safetensors only, no code from the folder."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moesaic.errors import InputError
from moesaic.model import execution


def read_config(folder: Path, key: str) -> dict[str, Any]:
    """config.json as a dict. Raises InputError: none there, damaged, or one that asks for remote code."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{key}: {folder} holds no config.json; give a folder in Hugging Face format, a GGUF file or a hub id"
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{key}: {path} is not valid JSON ({error}); fetch it again") from error
    if "auto_map" in config:
        raise InputError(
            f"{key}: {path} asks for code of its own (auto_map); only architectures built into transformers are loaded, never remote code"
        )
    return config


def check_folder(folder: Path, key: str) -> dict[str, Any]:
    """Refuse what would need unpickling or remote code; return config.json as a dict.

    Raises:
        InputError: names `key` and the file, and says what to do.
    """
    config = read_config(folder, key)
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        if pickles:
            raise InputError(
                f"{key}: {folder} holds only pickled weights ({pickles[0]}), which can run code when opened; convert them to safetensors first"
            )
        raise InputError(f"{key}: {folder} holds no *.safetensors")
    return config


def note_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Let config.json name the dtype of the weights beside it; transformers writes that of the model in memory, which an engine may have cast."""
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in raw else "dtype"
    name = str(dtype).removeprefix("torch.")
    if raw.get(key) != name:
        path.write_text(json.dumps(raw | {key: name}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def damaged(key: str, where: Path, error: Exception) -> InputError:
    """The error for weights that cannot be read."""
    return InputError(
        f"{key}: damaged weights in {where} ({error}); delete them and make or fetch them again"
    )


def check_complete(info: Mapping[str, Any], where: str) -> None:
    """Refuse a model with weights drawn at random. Args: info: transformers' loading info. Raises InputError that begins with `where`."""
    if wrong := sorted([*info["missing_keys"], *(str(item) for item in info["mismatched_keys"])]):
        raise InputError(
            f"{where} lacks weights of its architecture or has them in another shape, first: {wrong[0]} ({len(wrong)} in all)"
        )


def listed(folder: Path, key: str) -> dict[str, Path] | None:
    """The file of each tensor, of a model in several; None where there is no list of them. Raises InputError for a file that is missing, or a list that is damaged."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return None
    try:
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        missing = sorted({file for file in names.values() if not (folder / file).is_file()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(key, path, error) from error
    if missing:
        raise InputError(f"{key}: {folder} lacks the shard {missing[0]} ({len(missing)} missing)")
    return {name: folder / file for name, file in names.items()}


def load_model(folder: Path, key: str = "model", dtype: torch.dtype | str = "auto") -> Any:
    """A causal language model from a folder, in evaluation mode, on the CPU.

    Raises:
        InputError: a missing, pickled or damaged file, or missing weights.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from moesaic.model.depth import saved

    raw = check_folder(folder, key)
    listed(folder, key)
    skips = raw.get("model_type") == saved.MODEL_TYPE
    more = {"config": saved.standard_config(raw)} if skips else {}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **more,
        )
    except SafetensorError as error:
        raise damaged(key, folder, error) from error
    check_complete(info, f"{key}: {folder}")
    if skips:
        saved.restore(model, raw, folder, key)
    execution.apply(model, "auto", torch.device("cpu"), logging.DEBUG)  # moved to a GPU, it hands over
    return model.eval()


def load_tokenizer(folder: Path, key: str = "model.tokenizer") -> Any:
    """The tokenizer saved beside a model."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(
            f"{key}: {folder} holds no tokenizer (tokenizer.json); set model.tokenizer to a folder that has the model's own"
        )
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
