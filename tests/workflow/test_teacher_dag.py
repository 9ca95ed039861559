"""Caches of offline teachers in the DAG: one for all variants that share the dense parent, one each for their own MoE."""

import project
import yaml
from test_dag import planned


def plan(folder, **changes):
    path = folder / "config.yaml"
    raw = yaml.safe_load(path.read_text())
    for stage, own in changes.items():
        raw[stage] = raw.get(stage, {}) | own
    raw["variants"] = {"activation": {}, "other": {"experts": {"per_token": 1}, "distill": {"loss": "jsd"}}}
    path.write_text(yaml.safe_dump(raw))
    return planned(folder)


def test_caches_are_jobs_of_their_own(tmp_path):
    (tmp_path / "a").mkdir()
    project.make(tmp_path / "a")
    jobs = plan(
        tmp_path / "a", pretrain={"teacher": "dense", "offline": {"top": 8}}, distill={"offline": {"top": 8}}
    )
    # the dense parent on the corpus for both variants; each variant's tuned MoE on the conversations
    assert jobs["teacher"] == 1 + 2
    assert jobs["pretrain"] == jobs["distill"] == 2
