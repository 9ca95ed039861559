"""Load, merge and check the configuration; which part of it a step depends on is in settings.py."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from moesaic import contradictions
from moesaic.errors import InputError
from moesaic.explain import explain, nearest
from moesaic.schema import Config

VARIANT_KEYS = ("experts", "pretrain", "tune", "preference", "distill")
RESERVED_VARIANTS = {"prepare", "dense", "cache", "config"}


class Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: the first one's values would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Of the keys as written; what `<<` brings along may be written anew."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice in one section", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a YAML (or JSON) file and check it. Raises InputError naming the key, the value and what is allowed.

    Args:
        overrides: laid over the file, and over what its variants say of the same keys.
    """
    raw = merge(read(path), overrides or {})
    variants = raw.get("variants")
    for name, changes in variants.items() if isinstance(variants, Mapping) else ():
        both = {
            key: value
            for key, value in (overrides or {}).items()
            if key in VARIANT_KEYS and key in (changes or {})
        }
        if both:
            raw["variants"] = merge(raw["variants"], {name: both})
    return check(raw, str(path))


def read(path: str | Path) -> dict[str, Any]:
    """What a file says, unchecked. Raises InputError: missing, not YAML, or a key twice."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such configuration file"
            + (
                "; the workflow's onstart writes it, a Snakefile of your own that uses it as a module has to call that (docs/howto/new-project.md)"
                if path.parent.name == "config" and path.suffix == ".json"
                else ""
            )
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        # JSON by its own rules: YAML takes 1e-05 for text, and half a surrogate pair for a character.
        raw = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected keys and values at the top level")
    return raw


def check(raw: Mapping[str, Any], where: str = "config") -> Config:
    """Validate a plain dict, with every variant merged and checked too. One line per error, all errors at once."""
    config = _validate(raw, where)
    own: dict[str, Config] = {}
    for name, changes in config.variants.items():
        if name in RESERVED_VARIANTS or not re.fullmatch(r"\w[\w-]*", name):
            raise InputError(
                f"{where}: variants.{name}: a variant name may hold letters, digits, - (not first) and _ and not be one of {sorted(RESERVED_VARIANTS)}"
            )
        for key in changes:
            if key not in VARIANT_KEYS:
                raise InputError(
                    f"{where}: variants.{name}.{key}: a variant may override {', '.join(VARIANT_KEYS)}{nearest(key, VARIANT_KEYS)}"
                )
        own[name] = variant_config(config, name, where)
        faults = list(contradictions.find(own[name]))
        if faults:
            raise InputError("\n".join(f"{where}: variants.{name}: {line}" for line in faults))
    faults = list(contradictions.untaught(own.values()))
    if faults:
        raise InputError("\n".join(f"{where}: {line}" for line in faults))
    return config


def variant_config(config: Config, variant: str, where: str = "config") -> Config:
    """The configuration of one variant: the common keys with that variant's overrides on top."""
    if variant not in config.variants:
        raise InputError(f"{where}: no variant named '{variant}'; variants: {', '.join(config.variants)}")
    merged = merge(given(config), config.variants[variant])
    return _validate(merged, f"{where}: variants.{variant}")


def given(config: Config) -> dict[str, Any]:
    """What was given, without defaults: a variant's keys are laid over that. Of `student: {of: dense}` the default student's other keys are no part."""
    return config.model_dump(mode="json", exclude_unset=True)


def flatten(value: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one dict with joined keys; an empty dict stays a value, lists too."""
    out: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            out |= flatten(item, separator, f"{prefix}{key}{separator}")
        else:
            out[f"{prefix}{key}"] = dict(item) if isinstance(item, Mapping) else item
    return out


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes laid over base, dicts key by key, everything else replaced whole; so is an `at` of another kind, whose keys mean nothing to the new one."""
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and (key != "at" or value.get("kind", old.get("kind")) == old.get("kind"))
        ):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def parse_override(text: str) -> dict[str, Any]:
    """'pretrain.steps=20' -> {'pretrain': {'steps': 20}}; the value is YAML."""
    key, sep, value = text.partition("=")
    if not sep or not key:
        raise InputError(f"--set {text}: expected key.path=value")
    try:
        out: Any = yaml.load(value, Loader)
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        raise InputError(f"--set {text}: not valid YAML: {' '.join(str(error).split())}") from error
    for part in reversed(key.split(".")):
        out = {part: out}
    return dict(out)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a JSON-able value, 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the configuration, for editors and Snakemake."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Moesaic configuration"
    return schema


def _validate(raw: Mapping[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {line}" for line in explain(error, raw))) from None
