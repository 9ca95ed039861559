"""A project whose distillation goes in rounds, prepared once. A test that runs a step does it in a copy (rounds_project.here)."""

import contextlib

import project
import pytest
from rounds_project import CHANGES


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    path = project.make(folder, CHANGES)
    with contextlib.chdir(folder):
        project.prepare(path)
    return path
