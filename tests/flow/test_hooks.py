"""What the main process tells the jobs."""

from moesaic import config
from moesaic.flow import hooks, track
from moesaic.settings import step_settings


def test_jobs_see_variants_and_domains_in_the_users_order(tmp_path, monkeypatch):
    """Digests of settings hold the variants as a list: a job that saw them sorted would seem made from another configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(track, "start", lambda settings, results: "run")
    for name in ("PARENT_RUN", "GIT_COMMIT", "TRACKING_URI", "EXPERIMENT", "CONFIG"):
        monkeypatch.setenv(f"MOESAIC_{name}", "")
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
