"""Exported models of the fixture `loaded`, with their cards."""

import tempfile
from pathlib import Path

from huggingface_hub import ModelCard

from moesaic import config as configuration
from moesaic.card import export

PARENT_CARD = """---
license: llama3.1
license_link: https://example.org/licence
language: [en, de]
base_model: someone/older
---

# A parent
"""


def changed(loaded, **model):
    """The same run, with other words about the parent."""
    raw = loaded.model_dump(mode="json")
    return configuration.check(configuration.merge(raw, {"model": model}))


def exported(loaded, stage="distill", variant="activation"):
    out = export.run(loaded, variant, stage, Path(tempfile.mkdtemp(dir=".")) / "model")
    return out, ModelCard.load(out / "README.md")
