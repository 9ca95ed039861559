"""The small deterministic file that a step writes last: what it read, with which settings, and what it made.

Two runs with equal settings, inputs and seed write equal bytes. Times, hosts and ids go to run.json, never here.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesaic import config
from moesaic.errors import InputError
from moesaic.flow import files

SCHEMA_VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class Output:
    """One file that a step made; the path is relative to the manifest's folder."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds; `folder` is where it was read from."""

    step: str
    step_version: int
    settings: dict[str, Any]
    settings_digest: str
    inputs: dict[str, str]
    """Name of the input -> SHA-256 of its manifest."""
    outputs: list[Output]
    metrics: dict[str, Any]
    schema_version: int = SCHEMA_VERSION
    folder: Path = field(default=Path(), compare=False)


def path_of(path: str | Path) -> Path:
    """The manifest file of a step folder (or the file itself)."""
    path = Path(path)
    return path / NAME if path.name != NAME else path


def read(path: str | Path) -> Manifest:
    """Read a step's manifest. Raises InputError naming the file when it is missing or damaged."""
    path = path_of(path)
    if not path.is_file():
        raise InputError(f"{path}: not there; run the step that makes it first")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        outputs = [Output(**item) for item in raw.pop("outputs")]
        manifest = Manifest(**raw, outputs=outputs, folder=path.parent)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged manifest ({error}); delete it and run its step again") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {manifest.schema_version}, this moesaic reads {SCHEMA_VERSION}; run its step again"
        )
    return manifest


def verify(manifest: Manifest, only: Iterable[str] | None = None) -> None:
    """Check sizes and digests of a step's files (or of those whose path starts with one of `only`)."""
    prefixes = tuple(only) if only is not None else ("",)
    for output in manifest.outputs:
        if not output.path.startswith(prefixes):
            continue
        path = manifest.folder / output.path
        remedy = f"delete {path_of(manifest.folder)} and run the {manifest.step} step again"
        if not path.is_file():
            raise InputError(f"{path}: missing, though the manifest lists it; {remedy}")
        if path.stat().st_size != output.bytes:
            raise InputError(
                f"{path}: damaged, {path.stat().st_size} bytes where the manifest says {output.bytes}; {remedy}"
            )
        if files.sha256(path) != output.sha256:
            raise InputError(f"{path}: damaged, its SHA-256 differs from the manifest; {remedy}")


def make(
    folder: Path,
    step: str,
    step_version: int,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    outputs: Iterable[str],
    metrics: Mapping[str, Any],
) -> Manifest:
    """The manifest of what a step has made: its files are read for their digests, which takes minutes where they are large.

    Args:
        outputs: files or folders, relative to `folder`; folders are listed file by file, dotfiles left out.
        metrics: headline numbers, JSON-able and deterministic.
    """
    found: list[Output] = []
    for name in sorted(set(outputs)):
        top = folder / name
        members = (
            [top]
            if top.is_file()
            else sorted(p for p in top.rglob("*") if p.is_file() and not p.name.startswith("."))
        )
        assert members, f"step {step} declared an output that it did not write: {top}"
        found += [Output(str(p.relative_to(folder)), p.stat().st_size, files.sha256(p)) for p in members]
    return Manifest(
        step=step,
        step_version=step_version,
        settings=dict(settings),
        settings_digest=config.digest(dict(settings)),
        inputs={name: files.sha256(path_of(path)) for name, path in sorted(inputs.items())},
        outputs=found,
        metrics=dict(metrics),
        folder=folder,
    )


def save(manifest: Manifest) -> None:
    """Write `manifest.json` into the step's folder; call it last."""
    raw = dataclasses.asdict(manifest)
    del raw["folder"]
    files.write_json(manifest.folder / NAME, raw)


def write(*args: Any, **kwargs: Any) -> Manifest:
    """`make` and `save`."""
    made = make(*args, **kwargs)
    save(made)
    return made
