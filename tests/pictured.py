"""A tiny project with pictures: drawn squares with captions, beside the chat data of `project`."""

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import project
from PIL import Image

from moesaic import config

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "black": (20, 20, 20)}
PLACES = {"left": (0, 0), "right": (0, 4), "low": (4, 0), "far": (4, 4)}
GROUNDS = {"light": 240, "grey": 150, "dark": 90}
IMAGES: dict[str, Any] = {
    "sources": [{"at": {"kind": "files", "path": "pictures"}}],
    "grid": [4, 4],
    "patch": 2,
    "codes": 8,
    "filters": {"min_characters": 3},
}
TUNE: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "micro_batch": 2,
    "save_every": 2,
    "optimizer": {"lr": 5e-3, "warmup": 0, "weight_decay": 0.0},
    "adapter": {"method": "lateral", "rank": 4},
}
CHANGES: dict[str, Any] = {
    "stages": ["construct", "tune"],
    "data": {"images": IMAGES, "chat": {"max_tokens": 200, "validation": 0.2}},
    "tune": TUNE,
    "evaluate": {"pictures": 2},
}


def draw(folder: Path) -> None:
    """48 pictures of 8 x 8 pixels, and metadata.jsonl as an image folder has it."""
    folder.mkdir(parents=True)
    lines = []
    for colour, place, ground in itertools.product(COLOURS, PLACES, GROUNDS):
        ramp = GROUNDS[ground] - 4 * np.arange(8)
        pixels = np.broadcast_to(ramp[:, None, None], (8, 8, 3)).astype(np.uint8)
        y, x = PLACES[place]
        pixels[y : y + 4, x : x + 4] = COLOURS[colour]
        name = f"{colour}-{place}-{ground}.png"
        Image.fromarray(pixels).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"{colour} {place} on {ground}"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))


def make(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Lay out the project; returns its configuration file."""
    path = project.make(folder, config.merge(CHANGES, changes or {}))
    draw(folder / "pictures")
    return path


def prepare(path: Path) -> None:
    """The shared steps and the construction."""
    with contextlib.chdir(path.parent):
        for step in ("dense", "documents", "tokens", "images", "chat", "tasks"):
            project.run(path, step)
        project.run(path, "construct", "activation")
