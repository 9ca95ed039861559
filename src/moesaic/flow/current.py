"""Which steps in results/ are the configuration's: those finished as it asks for, and those made with other settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import InputError
from moesaic.flow import files, manifest, paths
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import STEPS
from moesaic.flow.told import Place, places
from moesaic.schema import Config
from moesaic.settings import compared, step_settings


@dataclass(frozen=True)
class Found:
    """One step of the configuration, and what lies in its folder."""

    place: Place
    done: Manifest | None
    """None: missing or damaged."""
    same: bool
    """Its manifest has these settings; the version of the step may be another."""
    configured: bool
    """And this version of the step."""
    finished: bool
    """And its inputs are finished, and unchanged since."""


def look(config: Config, results: Path) -> dict[Path, Found]:
    """Folder -> what is there, of every step in the order of the workflow. Every manifest is read once, so that all who ask see the same."""
    found: dict[Path, Found] = {}
    digests: dict[Path, str] = {}
    for place in places(config, results):
        done = _read(place.folder)
        same = configured = finished = False
        if done is not None:
            digests[place.folder] = files.sha256(manifest.path_of(place.folder))
            same = _same(done, place.settings)
            configured = same and _this_version(done, place.step)
            finished = (
                configured
                and all(found[path.parent].finished for path in place.inputs.values())
                and done.inputs == {name: digests[path.parent] for name, path in place.inputs.items()}
            )
        found[place.folder] = Found(place, done, same, configured, finished)
    return found


def shared(config: Config, step: str) -> Manifest | None:
    """Manifest of a step that all variants share, where it has the configuration's settings; None: missing, damaged, or of another configuration."""
    done = _read(paths.folder(step))
    asked = done is not None and _this_version(done, step) and _same(done, step_settings(config, step))
    return done if asked else None


def _same(done: Manifest, settings: Mapping[str, Any]) -> bool:
    return compared(done.settings) == compared(settings)


def _this_version(done: Manifest, step: str) -> bool:
    return done.step_version == STEPS[step].version


def _read(folder: Path) -> Manifest | None:
    try:
        return manifest.read(folder)
    except InputError:
        return None
