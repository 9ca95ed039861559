"""Tests that compile C++."""

import os
import shutil

import pytest

missing = [tool for tool in (os.environ.get("CXX", "c++").split()[0], "ninja") if shutil.which(tool) is None]
compiler = pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")
