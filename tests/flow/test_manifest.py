"""manifest.json: equal content gives equal bytes, damage is named, a reader never sees half of anything."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.errors import InputError
from moesaic.flow import files, manifest


def _step(folder: Path, upstream: Path | None = None) -> manifest.Manifest:
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "b.bin").write_bytes(b"b" * 1000)
    (folder / "model" / "a.bin").write_bytes(b"a" * 10)
    (folder / "model" / ".snakemake_timestamp").write_text("not ours")
    (folder / "stats.json").write_text("{}")
    inputs = {"data": upstream} if upstream else {}
    return manifest.write(
        folder, "toy", 3, {"b": 1, "a": [2, "ä"]}, inputs, ["stats.json", "model"], {"loss": 0.5}
    )


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _step(tmp_path / name / "up")
        _step(tmp_path / name / "down", tmp_path / name / "up")
    for step in ("up", "down"):
        one, two = (tmp_path / name / step / "manifest.json" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_reads_what_was_written_without_dotfiles(tmp_path: Path) -> None:
    written = _step(tmp_path)
    found = manifest.read(tmp_path)
    assert found == written
    assert found.folder == tmp_path
    assert [output.path for output in found.outputs] == ["model/a.bin", "model/b.bin", "stats.json"]
    assert found.outputs[0].bytes == 10
    manifest.verify(found)


def test_a_changed_upstream_changes_the_manifest(tmp_path: Path) -> None:
    _step(tmp_path / "up")
    before = _step(tmp_path / "down", tmp_path / "up").inputs
    manifest.write(tmp_path / "up", "toy", 3, {"a": 2}, {}, ["stats.json"], {})
    assert _step(tmp_path / "down", tmp_path / "up").inputs != before


def test_damaged_file_is_named(tmp_path: Path) -> None:
    found = _step(tmp_path)
    (tmp_path / "model" / "b.bin").write_bytes(b"b" * 999 + b"x")
    with pytest.raises(
        InputError, match=r"model/b\.bin: damaged, its SHA-256 differs.*run the toy step again"
    ):
        manifest.verify(found)
    manifest.verify(found, only=["model/a", "stats"])
    (tmp_path / "model" / "b.bin").write_bytes(b"b" * 998)
    with pytest.raises(InputError, match=r"model/b\.bin: damaged, 998 bytes where the manifest says 1000"):
        manifest.verify(found)
    (tmp_path / "model" / "b.bin").unlink()
    with pytest.raises(InputError, match=r"model/b\.bin: missing"):
        manifest.verify(found)


@pytest.mark.parametrize("keep", [0, 1, 100, -5])
def test_truncated_manifest_is_named(tmp_path: Path, keep: int) -> None:
    _step(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        InputError, match=r"manifest\.json: damaged manifest .*delete it and run its step again"
    ):
        manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"outputs": {}}', '{"outputs": [{"path": "a"}]}'])
def test_json_that_is_no_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json: damaged manifest"):
        manifest.read(tmp_path)


def test_missing_manifest_and_another_schema_version(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there; run the step that makes it first"):
        manifest.read(tmp_path)
    _step(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        manifest.read(tmp_path)


def test_a_declared_output_that_is_not_there_stops_the_step(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="did not write"):
        manifest.write(tmp_path, "toy", 1, {}, {}, ["model"], {})
    assert not (tmp_path / "manifest.json").exists()


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for round_ in range(2):
        with files.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / f"file-{round_}").write_text("x")
    assert [path.name for path in target.iterdir()] == ["file-1"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def fail_halfway() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_kill_during_writes_never_shows_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    code = (
        "import sys; from pathlib import Path; from moesaic.flow import files\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; files.write_json(Path(sys.argv[1]), [n] * 50000)\n"
    )
    for delay in (0.02, 0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        values = json.loads(path.read_text())
        assert len(values) == 50000
        assert len(set(values)) == 1
        path.unlink()
