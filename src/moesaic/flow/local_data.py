"""Files of the user's own that a step reads: their state is part of what Snakemake compares, so that an edited file reruns what was made from it."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("moesaic.data")
STEPS = ("dense", "documents", "images", "chat", "tasks", "temporal", "reliability")
"""Steps that read them."""
KINDS = ("files", "folder", "gguf")
"""Of a source, whose `path` lies on this file system."""
KEYS = ("include_path", "tram", "timebench", "mctaco", "folder", "tokenizer", "chat_template")
"""Settings that name a file or folder themselves."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".PNG", ".JPG", ".JPEG")


def state(settings: Mapping[str, Any]) -> str:
    """Path, size and time of change of every local file that a step's settings name, as JSON; empty where they name none.

    A copy of a results folder keeps its times with `cp -a` or `rsync -a`.
    """
    found = [
        (path.as_posix(), status.st_size, status.st_mtime_ns)
        for text in sorted(set(named(settings)))
        for path in matching(text)
        for status in (path.stat(),)
    ]
    return json.dumps(found) if found else ""


def named(settings: Any) -> Iterator[str]:
    """The paths in a step's settings."""
    if isinstance(settings, Mapping):
        at = settings.get("at")
        # a source of pictures whose `images` names no package: they lie beside their table
        if isinstance(at, Mapping) and at.get("kind") == "files" and settings.get("images", at) is None:
            yield from pictures(at["path"])
        if settings.get("kind") in KINDS and "path" in settings:
            yield settings["path"]
        for key, value in settings.items():
            if key in KEYS and isinstance(value, str):
                yield value
                if key == "include_path":
                    yield from beside_tasks(value)
                if key == "chat_template":  # a name: the project's own file of it
                    yield f"config/chat_templates/{value}.jinja"
            else:
                yield from named(value)
    elif isinstance(settings, list | tuple):
        for item in settings:
            yield from named(item)


def beside_tasks(folder: str) -> Iterator[str]:
    """Local files elsewhere that the YAML files of a folder of tasks name."""
    for path in matching(folder):
        if path.suffix in (".yaml", ".yml"):
            text = path.read_text(encoding="utf-8", errors="replace")
            for word in re.findall(r"[^\s\"'\[\]{},]*/[^\s\"'\[\]{},]+", text):
                if os.path.isfile(word):  # where Path.is_file raises for what cannot be a name, this is False
                    yield word


def pictures(table: str) -> Iterator[str]:
    """Globs of the pictures beside a table of them, below its folder; in the working directory, which holds results too, not below it."""
    folder = Path(table) if Path(table).is_dir() else Path(table).parent
    below = "" if folder == Path() else "**/"
    yield from (f"{folder.as_posix()}/{below}*{suffix}" for suffix in PICTURES)


def matching(text: str) -> list[Path]:
    """Files of a path, a folder (linked ones in it too, but no hidden ones) or a glob, sorted; empty where there is none."""
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(_inside(path))
    if not any(c in text for c in "*?["):
        return []
    base = Path(path.anchor) if path.is_absolute() else Path()
    pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else text
    return sorted(item for item in base.glob(pattern) if item.is_file())


def _inside(folder: Path) -> Iterator[Path]:
    """Files below a folder, every real folder once: links come last, so that one back into the tree neither loops nor doubles anything."""
    folders, links, seen = [folder], list[Path](), set[Path]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        try:
            items = sorted(here.iterdir())
        except PermissionError as error:
            log.warning("%s: left out, it cannot be read (%s)", here, error.strerror)
            continue
        for item in items:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                (links if item.is_symlink() else folders).append(item)
            elif item.is_file():
                yield item
