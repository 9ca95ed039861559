"""Files of the user's own that a step reads: their state is part of what Snakemake compares, so that an edited file reruns what was made from it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

STEPS = ("dense", "documents", "images", "chat", "tasks", "temporal", "reliability")
"""Steps that read them."""
KINDS = ("files", "folder", "gguf")
"""Of a source, whose `path` lies on this file system."""
KEYS = ("include_path", "tram", "timebench", "mctaco", "folder", "tokenizer", "chat_template")
"""Settings that name a file or folder themselves."""


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
        if settings.get("kind") in KINDS and "path" in settings:
            yield settings["path"]
        for key, value in settings.items():
            if key in KEYS and isinstance(value, str):
                yield value
            else:
                yield from named(value)
    elif isinstance(settings, list | tuple):
        for item in settings:
            yield from named(item)


def matching(text: str) -> list[Path]:
    """Files of a path, a folder (but hidden ones) or a glob, sorted; empty where there is none."""
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = (item for item in path.rglob("*") if item.is_file())
        return sorted(
            item for item in inside if not any(part.startswith(".") for part in item.relative_to(path).parts)
        )
    if not any(c in text for c in "*?["):
        return []
    base = Path(path.anchor) if path.is_absolute() else Path()
    pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else text
    return sorted(item for item in base.glob(pattern) if item.is_file())
