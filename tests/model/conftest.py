"""A tiny model of every family, for the tests of depth."""

import pytest
from depth_models import FAMILIES
from tiny import tiny_llama, tiny_moe


@pytest.fixture(params=list(FAMILIES))
def model(request, tmp_path):
    own = FAMILIES[request.param]
    made = tiny_llama() if own is None else tiny_moe(tmp_path, **own).model
    assert made.config.model_type == request.param
    return made
