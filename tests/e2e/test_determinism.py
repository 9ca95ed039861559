"""The same seed gives the same manifests, digests and weights; another seed does not."""

import os
from pathlib import Path

import project
import pytest

from moesaic.flow import manifest


def chain(folder, seed, evaluated=True):
    """Manifests by name; outputs' digests of the steps that make models or text."""
    folder.mkdir()
    path = project.make(folder, {"seed": seed})
    before = Path.cwd()
    os.chdir(folder)
    try:
        project.prepare(path)
        for step in ("pretrain", "tune", "distill"):
            project.run(path, step, "activation")
        if evaluated:
            project.run(path, "evaluate", stage="dense")
            for stage in ("construct", "pretrain", "distill"):
                project.run(path, "evaluate", "activation", stage)
    finally:
        os.chdir(before)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("manifest.json"))}
    return found, manifest.read(folder / "results/activation/distill")


@pytest.mark.slow
def test_seeds(tmp_path):
    one, last = chain(tmp_path / "one", 3)
    two, _ = chain(tmp_path / "two", 3)
    assert len(one) == 13
    for name, content in one.items():
        assert content == two[name], f"{name} differs between two runs of one seed"
    chain(tmp_path / "three", 4, evaluated=False)

    def outputs(run, step):
        return {item.path: item.sha256 for item in manifest.read(tmp_path / run / "results" / step).outputs}

    for step in (
        "prepare/documents",
        "activation/construct",
        "activation/pretrain",
        "activation/tune",
        "activation/distill",
    ):
        assert outputs("one", step) != outputs("three", step), step
    assert outputs("one", "dense") == outputs("three", "dense"), "the parent does not depend on the seed"
    assert last.metrics["active_parameters"] < last.metrics["parameters"]
