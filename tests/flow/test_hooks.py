"""What the main process tells the jobs."""

import pytest
from snakemake.exceptions import WorkflowError

from moesaic import config
from moesaic.flow import hooks, track
from moesaic.settings import step_settings

OWN = {
    "model": {"at": {"kind": "folder", "path": "m"}},
    "data": {"domains": {"web": {"sources": [{"at": {"kind": "files", "path": "web"}}]}}},
    "variants": {"activation": {}},
    "stages": ["construct"],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(track, "start", lambda settings, results: "run")
    for name in ("PARENT_RUN", "GIT_COMMIT", "TRACKING_URI", "EXPERIMENT", "CONFIG"):
        monkeypatch.setenv(f"MOESAIC_{name}", "")


def test_results_of_another_run_are_not_built_over(here):
    """Variants of two recipes have the same names, so that one's models would take the place of the other's."""
    mine, other = (config.check(OWN | {"name": name}) for name in ("mine", "other"))
    hooks.RESULTS.mkdir()  # as an older version leaves it, without the note
    hooks.start(mine)
    hooks.start(config.check(OWN | {"name": "mine", "seed": 7, "variants": {"random": {}}}))
    with pytest.raises(WorkflowError) as error:
        hooks.start(other)
    for part in ("'mine'", "'other'", "--directory", "moesaic init", "delete results/name.txt"):
        assert part in str(error.value)
    assert not hooks.config_file(other).exists()
    hooks.NAME.unlink()
    hooks.start(other)
    with pytest.raises(WorkflowError, match="'mine'"):
        hooks.start(mine)


def test_jobs_see_variants_and_domains_in_the_users_order(here):
    """Digests of settings hold the variants as a list: a job that saw them sorted would seem made from another configuration."""
    domains = {name: {"sources": [{"at": {"kind": "files", "path": name}}]} for name in ("web", "books")}
    own = config.check({
        "model": {"at": {"kind": "folder", "path": "m"}}, "data": {"domains": domains}, "name": "\U0001f680", "experts": {"layers": {"1": {"ridge": 1e-05}}}, "variants": {"published": {}, "activation": {}},
        "stages": ["construct"],
    })  # fmt: skip
    hooks.start(own)
    given = config.load(hooks.config_file(own))
    assert list(given.variants) == ["published", "activation"]
    assert list(given.data.domains) == ["web", "books"]
    assert hooks.inherited() is None
    hooks.prepare(own)
    assert hooks.inherited() == own
    settings = [config.digest(step_settings(item, "report")) for item in (own, given)]
    assert settings[0] == settings[1]
