"""The page of `make bench`: one command for each claim, and a missed goal is told as missed."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks/page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_bench_runs_what_the_page_tells(page):
    text = (ROOT / "Makefile").read_text()
    lines = [
        line
        for name in ("bench", "bench-long")
        for line in text.split(f"\n{name}:")[1].split("\n\n")[0].splitlines()
    ]
    commands = {line.strip().lstrip("-") for line in lines if "python benchmarks/" in line}
    assert commands == {command for _, _, command, _ in page.SECTIONS} | {"python benchmarks/page.py"}
    for command in commands:
        assert (ROOT / command.split()[1]).exists(), command


def test_the_page_is_made_of_the_stored_figures(page):
    text = (ROOT / "docs/benchmarks.md").read_text()
    for _, name, command, section in page.SECTIONS:
        assert command in text
        path = ROOT / page.RESULTS / name
        if path.exists():
            made = [line for line in section(json.loads(path.read_text())) if line]
            assert made, name
            assert all(line in text for line in made), f"{name}: run python benchmarks/page.py"


def test_a_missed_goal_is_told(page):
    row = {
        "active": 0.5, "ideal": 0.7, "of_dense_wall": [1, 1, 1], "of_dense_processor": [1, 1, 1], "faster_than_trainer_wall": [2, 2, 2],
        "faster_than_trainer_processor": [1.1, 1.0, 1.3], "memory_gb": {"ours": 1.0, "trainer": 2.0}, "memory_of_trainer": 0.5,
    }  # fmt: skip
    raw = {"layers": 0, "micro_batch": 2, "length": 512, "implementation": "grouped_mm", "rows": [row]}
    (line,) = [line for line in page.step(raw) if line.startswith("- ")]
    assert "1.2 times the Trainer (processor time): **missed** (1.10)" in line
    assert "0.8 of its memory: met (0.50)" in line


def test_rows_made_with_other_options_are_apart(monkeypatch):
    """Rows from before an option was written down were made with its default."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import construct

    old = {"tokens": 10240, "train_tokens": 8192, "rate": 1e-4}
    asked = old | {"batch": construct.BATCH, "blocks": construct.BLOCKS, "held_out": construct.HELD_OUT}
    assert construct.options(old) == construct.options(asked) == asked
    for change in (
        {"rate": 3e-4},
        {"batch": 8},
        {"blocks": 16},
        {"held_out": "code"},
        {"train_tokens": 16384},
    ):
        assert construct.options(asked | change) != construct.options(old), change
        ((key, value),) = change.items()
        assert construct.heading(asked | change) == f"10240 calibration tokens, {key} {value}"
    untrained = {"tokens": 10240, "train_tokens": 0}
    assert construct.options(untrained | {"rate": 3e-4, "batch": 8}) == construct.options({"tokens": 10240})
    assert construct.heading(construct.options(old)) == construct.heading(construct.options(untrained))
    assert construct.heading(construct.options(old)) == "10240 calibration tokens"
