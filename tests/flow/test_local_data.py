"""What Snakemake compares of the user's own files."""

import os

from moesaic.flow import local_data


def test_every_file_that_settings_name_counts_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "web/a.txt",
        "web/deep/b.txt",
        "web/.hidden/c.txt",
        "chat-1.jsonl",
        "chat-2.jsonl",
        "tasks/x.yaml",
        "m/config.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    settings = {
        "domains": {"web": {"sources": [{"at": {"kind": "files", "path": "web"}}]}},
        "chat": {"sources": [{"at": {"kind": "files", "path": "chat-*.jsonl"}}, {"at": {"kind": "pypi", "package": "x", "path": "web"}}]},
        "include_path": "tasks",
        "model": {"at": {"kind": "folder", "path": str(tmp_path / "m")}, "tokenizer": None},
        "gone": {"kind": "files", "path": "nowhere"},
    }  # fmt: skip
    before = local_data.state(settings)
    for name in (
        "web/a.txt",
        "web/deep/b.txt",
        "chat-1.jsonl",
        "chat-2.jsonl",
        "tasks/x.yaml",
        "m/config.json",
    ):
        assert name in before
    assert "hidden" not in before
    status = (tmp_path / "web/a.txt").stat()
    (tmp_path / "web/a.txt").write_text("web/A.txt")  # as long as before
    os.utime(tmp_path / "web/a.txt", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert local_data.state(settings) != before
    os.utime(tmp_path / "web/a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert local_data.state(settings) == before
    (tmp_path / "chat-3.jsonl").write_text("new")
    assert local_data.state(settings) != before


def test_files_that_a_task_of_the_users_own_names_count_too(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.jsonl").write_text("1")
    (tmp_path / "tasks").mkdir()
    text = f"dataset_kwargs:\n  data_files: {tmp_path}/data/x.jsonl\ndoc_to_text: {'是' * 120}/否\n"
    (tmp_path / "tasks/own.yaml").write_text(
        text, encoding="utf-8"
    )  # a word with a slash that is no name of a file
    settings = {"include_path": str(tmp_path / "tasks")}
    before = local_data.state(settings)
    assert "data/x.jsonl" in before
    (tmp_path / "data/x.jsonl").write_text("12")
    assert local_data.state(settings) != before


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    for name in ("web/deep/a.txt", "disk/more/b.txt", "disk/.hidden/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    web = tmp_path / "web"
    for link, target in {
        "archive": "disk", "again": "web/deep", "deep/up": "web", "disk-parent": ".", "../disk/back": "web",
    }.items():  # fmt: skip
        (web / link).symlink_to(tmp_path / target)
    (web / "gone").symlink_to(tmp_path / "nowhere")
    found = [path.relative_to(web).as_posix() for path in local_data.matching(str(web))]
    assert found == ["archive/more/b.txt", "deep/a.txt"]


def test_settings_without_local_files_have_no_state():
    assert (
        local_data.state({"domains": {"a": {"sources": [{"at": {"kind": "hub", "dataset": "x/y"}}]}}}) == ""
    )


def test_pictures_beside_their_table_count_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics/deep").mkdir(parents=True)
    for name in ("pics/metadata.jsonl", "pics/a.png", "pics/deep/b.jpg", "elsewhere.png"):
        (tmp_path / name).write_text(name)
    source = {"at": {"kind": "files", "path": "pics/metadata.jsonl"}, "images": None}
    before = local_data.state({"images": {"sources": [source]}})
    assert all(name in before for name in ("metadata.jsonl", "pics/a.png", "pics/deep/b.jpg"))
    assert "elsewhere" not in before
    (tmp_path / "pics/deep/b.jpg").write_text("another")
    assert local_data.state({"images": {"sources": [source]}}) != before
    packaged = source | {"images": {"kind": "npm", "package": "x"}}
    assert "a.png" not in local_data.state({"images": {"sources": [packaged]}})
