"""A finished run that cards are made of."""

import pytest
from card.cards import PARENT_CARD
from report import fake_results


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The configuration of a finished run whose parent is a folder with a card; the run is in the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("run")
        patch.chdir(folder)
        (folder / "secret-place").mkdir()
        (folder / "secret-place" / "README.md").write_text(PARENT_CARD)
        at = {"kind": "folder", "path": str(folder / "secret-place")}
        made = fake_results.load_config(model={"at": at, "name": "someone/parent"})
        fake_results.build(made)
        yield made
