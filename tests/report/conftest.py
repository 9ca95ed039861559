"""What the report reads, for the tests of its tables."""

import pytest
from report import fake_results


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        yield fake_results.gathered()
