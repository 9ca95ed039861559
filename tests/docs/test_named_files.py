"""What pages tell a reader to run or to open is there: scripts and their options, tests, make targets, files of the repository."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "profiles").rglob("*.md")),
]
SCRIPT = re.compile(r"(?<![\w/])python3? ((?:benchmarks|studies|tests|docs)/\S+\.py[^`\n#&;|]*)")
TESTS = re.compile(r"(?<![\w/-])pytest ([^`\n#&;|]*)")
TARGET = re.compile(r"`make ([a-z-]+)|^    make ([a-z-]+)", re.M)
PATH = re.compile(r"`((?:src|tests|benchmarks|studies|config|rules|profiles|envs|docs)/[\w./*-]+)`")
MADE = ("benchmarks/results/", "config/config.json", "config/mine")
"""Files that a command makes."""


def options(script):
    """Options of a script, of the repository's modules beside it that it imports, too."""
    text = (ROOT / script).read_text()
    for name in re.findall(r"^(?:import|from) (\w+)", text, re.M):
        beside = (ROOT / script).parent / f"{name}.py"
        text += beside.read_text() if beside.is_file() else ""
    return set(re.findall(r"""["'](--[a-z][a-z-]*)["']""", text)) | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    for found in SCRIPT.findall(text):
        script, *rest = shlex.split(found)
        assert (ROOT / script).is_file(), found
        if page.name == "lab-log.md":  # what was run then, with the options of that day
            continue
        for option in (word.split("=")[0] for word in rest if word.startswith("--")):
            assert option in options(script), f"{found}: {script} has no {option}"
    markers = (ROOT / "pyproject.toml").read_text()
    for found in TESTS.findall(text):
        words = shlex.split(found)
        for before, word in zip(["", *words], words, strict=False):
            if before == "-m":
                assert f'"{word}: ' in markers, found
            elif word.startswith("tests"):
                assert list(ROOT.glob(word)), found
    makefile = (ROOT / "Makefile").read_text()
    for target in (first or second for first, second in TARGET.findall(text)):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    for found in PATH.findall(text):
        if not found.startswith(MADE) and "NAME" not in found and "..." not in found:
            assert list(ROOT.glob(found.rstrip("/"))), f"{page.name} names {found}"
