"""Which steps in results/ are the configuration's: those finished as it asks for, and those made with other settings."""

from collections.abc import Iterable
from pathlib import Path

from moesaic.errors import InputError
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import STEPS
from moesaic.flow.told import Place
from moesaic.settings import compared


def finished(found: Iterable[Place]) -> set[Path]:
    """Folders of the steps that have these settings, this version, and inputs that are finished and unchanged since."""
    by_folder = {place.folder: place for place in found}
    known: dict[Path, bool] = {}

    def check(place: Place) -> bool:
        if place.folder not in known:
            above = [by_folder[path.parent] for path in place.inputs.values() if path.parent in by_folder]
            known[place.folder] = _made(place) and all(map(check, above))
        return known[place.folder]

    return {place.folder for place in by_folder.values() if check(place)}


def differing(found: Iterable[Place]) -> list[Place]:
    """The steps whose manifest has other settings, or is of another version of the step."""
    return [place for place in found if (done := _read(place)) is not None and not _configured(place, done)]


def _made(place: Place) -> bool:
    """Whether a step's own settings, version and inputs are what its manifest says."""
    done = _read(place)
    if done is None or not _configured(place, done):
        return False
    return done.inputs == {name: files.sha256(path) for name, path in place.inputs.items() if path.is_file()}


def _configured(place: Place, done: Manifest) -> bool:
    return (
        compared(done.settings) == compared(place.settings) and done.step_version == STEPS[place.step].version
    )


def _read(place: Place) -> Manifest | None:
    """None: missing or damaged."""
    try:
        return manifest.read(place.folder)
    except InputError:
        return None
