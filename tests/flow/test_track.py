"""MLflow from files: replaying is idempotent, resumed steps keep their run, changed ones get a new one."""

import json
import shutil
from pathlib import Path

from mlflow_runs import RESULTS, counts, history, pretrain_again, runs, step
from report import fake_results

from moesaic import config as configuration
from moesaic.flow import describe, files, hooks, store, track


def test_three_replays_give_the_same_rows(config):
    parent = track.start(config, RESULTS)
    track.replay(config, RESULTS, "FINISHED")
    first = counts()
    for run in runs(config, kind="step"):  # without the short cut for what is up to date
        store.open_experiment(config.track.uri, config.track.experiment)[0].delete_tag(
            run.info.run_id, "moesaic.synced"
        )
    track.replay(config, RESULTS, "FINISHED")
    track.replay(config, RESULTS)
    assert counts() == first
    steps = len(list(track.places(config, RESULTS)))
    assert first["runs"] == 1 + steps
    lines = sum(len(path.read_text().splitlines()) for path in RESULTS.glob("*/*/work/metrics.jsonl"))
    assert first["metrics"] > lines > 0
    (workflow,) = runs(config, kind="workflow")
    assert workflow.info.run_id == parent
    assert workflow.info.status == "FINISHED"
    assert {run.info.status for run in runs(config, kind="step")} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(config, kind="step")} == {parent}


def test_places_are_all_that_is_read():
    """Two variants with a cache of the dense parent for both, a cache of one's own MoE, the dense parent's answers."""
    samples = {
        "data": "samples",
        "loss": "dpkd",
        "teacher": "dense",
        "offline": None,
        "samples": {"shards": 2},
    }
    cached = {"offline": {"top": 8}}
    raw = fake_results.load_config().model_dump(mode="json", exclude_unset=True)
    raw["variants"] = {"one": {}, "two": {"distill": samples}}
    raw["pretrain"] |= {"teacher": "dense"} | cached
    raw["distill"] |= {"teacher": "moe"} | cached
    recipes = [configuration.load(path) for path in (fake_results.ROOT / "config/recipes").glob("*.yaml")]
    recipes.append(configuration.load(fake_results.ROOT / "studies/reliability.yaml"))
    for config in [configuration.check(raw), *recipes]:
        found = list(track.places(config, RESULTS))
        seen = set()
        for place in found:
            assert {path.parent for path in place.inputs.values()} <= seen, place.key
            assert place.folder not in seen
            seen.add(place.folder)
        if "one" in config.variants:
            made = [(p.variant, p.stage, p.folder.parts[1]) for p in found if p.step.startswith("teacher")]
            assert made == [(None, None, "dense"), ("one", "distill", "one"), *[(None, None, "dense")] * 2]


def test_what_a_step_run_holds(config):
    track.replay(config, RESULTS, "FINISHED")
    run = step(config, "activation/pretrain")
    assert run.info.run_name == "activation / pretrain"
    recorded = [
        json.loads(line)
        for line in (RESULTS / "activation/pretrain/work/metrics.jsonl").read_text().splitlines()
    ]
    losses = [(item["step"], item["value"]) for item in recorded if item["key"] == "train/loss"]
    assert history(config, run, "train/loss") == losses
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    stamps = {item.timestamp for item in client.get_metric_history(run.info.run_id, "train/loss")}
    assert stamps == {item["ts"] for item in recorded if item["key"] == "train/loss"}
    assert run.data.params["pretrain.optimizer.lr"] == "0.0003"
    assert run.data.params["pretrain.mixture.weights"] == "uniform"
    tags = run.data.tags
    assert (tags["moesaic.variant"], tags["moesaic.stage"], tags["moesaic.host"]) == (
        "activation",
        "pretrain",
        "node1",
    )
    assert tags["moesaic.slurm_job_id"] == "117"
    assert tags["mlflow.source.git.commit"].startswith("0123456789abcdef")
    assert tags["moesaic.input.tokens"] == files.sha256(RESULTS / "prepare/tokens/manifest.json")
    assert tags["mlflow.note.content"] == "Continual pre-training on text."
    assert (tags["mlflow.source.name"], tags["moesaic.command"]) == ("moesaic pretrain", "moesaic pretrain")
    (read,) = run.inputs.dataset_inputs
    assert (read.dataset.name, tags["moesaic.input.tokens"][:36]) == ("tokens", read.dataset.digest)
    assert json.loads(read.dataset.source)["uri"] == "results/prepare/tokens"
    assert run.info.end_time - run.info.start_time == 150_000
    scores = json.loads((RESULTS / "random/evaluate/construct/scores.json").read_text())
    evaluation = step(config, "random/evaluate/construct")
    assert evaluation.info.run_name == "random / construct / evaluate", "the model first: columns are narrow"
    average = next(item["value"] for item in scores if item["task"] == "text/average")
    assert evaluation.data.tags["mlflow.note.content"].startswith(f"{average:.3f} bits per byte")
    for score in scores:
        assert evaluation.data.metrics[f"eval/{score['task']}/{score['metric']}"] == score["value"]
    names = [item.path for item in client.list_artifacts(evaluation.info.run_id)]
    assert names == ["manifest.json", "routing.parquet", "samples.json", "scores.json"]
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["manifest.json", "model"]
    entry = [item.path for item in client.list_artifacts(run.info.run_id, "model")]
    assert entry == ["model/MLmodel", "model/README.md", "model/moesaic.json"], "no weights"


def test_parent_holds_the_report(config):
    track.replay(config, RESULTS, "FINISHED")
    (parent,) = runs(config, kind="workflow")
    summary = json.loads((RESULTS / "summary.json").read_text())
    assert parent.info.run_name == "default"
    assert parent.data.tags["mlflow.note.content"] == summary["verdict"]
    assert (
        parent.data.metrics["activation/pretrain/bits_per_byte"]
        == summary["rows"][2]["bits_per_byte"]["value"]
    )
    assert parent.data.params["pretrain.steps"] == str(config.pretrain.steps)
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {
        "report.html",
        "summary.json",
    }
    assert Path("mlartifacts").is_dir()


def test_invocations_are_appended(config):
    first, second = track.start(config, RESULTS), track.start(config, RESULTS)
    assert first == second
    (parent,) = runs(config, kind="workflow")
    assert parent.info.status == "RUNNING"
    assert sum(tag.startswith("moesaic.invocation.") for tag in parent.data.tags) == 2


def test_killed_and_resumed_step_keeps_its_run_and_has_no_step_twice(config):
    folder = RESULTS / "activation/pretrain"
    log = folder / "work" / "metrics.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    kept = {name: (folder / name).read_text() for name in ("run.json", "manifest.json")}
    fake_results.unfinish(folder)
    log.write_text("".join(line for line in whole if json.loads(line)["step"] <= 12))
    track.start(config, RESULTS)
    track.replay(config, RESULTS, "FAILED")
    before = step(config, "activation/pretrain")
    assert before.info.status == "FAILED"
    assert max(history(config, before, "train/loss"))[0] == 12
    assert runs(config, kind="workflow")[0].info.status == "FAILED"

    # The resume goes back to the checkpoint at step 8 and logs 9 to 12 again, with later time stamps.
    lines = [json.loads(line) for line in whole]
    again = [line | {"ts": line["ts"] + 3_600_000 * (line["step"] > 8)} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in again))
    for name, text in kept.items():
        (folder / name).write_text(text)
    assert track.start(config, RESULTS) == runs(config, kind="workflow")[0].info.run_id
    track.replay(config, RESULTS, "FINISHED")
    after = step(config, "activation/pretrain")
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert [item[0] for item in history(config, after, "train/loss")] == list(
        range(1, config.pretrain.steps + 1)
    )
    assert runs(config, kind="workflow")[0].info.status == "FINISHED"


def test_changed_setting_gives_a_new_run_and_supersedes_the_old_one(config):
    track.replay(config, RESULTS, "FINISHED")
    old, other = step(config, "activation/pretrain"), step(config, "random/pretrain")
    (old_parent,) = runs(config, kind="workflow")
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["variants"]["activation"]["pretrain"] = {"steps": 7}
    changed = configuration.check(raw)
    pretrain_again(changed)
    track.start(changed, RESULTS)
    track.replay(changed, RESULTS, "FINISHED")
    new = step(changed, "activation/pretrain")
    assert new.info.run_id != old.info.run_id
    (superseded,) = [
        run for run in runs(config, step_key="activation/pretrain") if run.info.run_id == old.info.run_id
    ]
    assert superseded.data.tags["moesaic.superseded"] == "true"
    assert new.data.params["pretrain.steps"] == "7"
    assert new.data.tags["moesaic.superseded"] == "false", "MLflow's search finds no runs without the tag"
    (parent,) = [run for run in runs(changed, kind="workflow") if run.info.run_id != old_parent.info.run_id]
    assert parent.info.run_name == "default (variants.activation.pretrain.steps: none -> 7)"
    assert parent.data.tags["mlflow.note.content"].endswith(f"before: {parent.data.tags['moesaic.changed']}")
    assert superseded.data.tags["mlflow.parentRunId"] == old_parent.info.run_id
    kept = step(changed, "random/pretrain")
    assert kept.info.run_id == other.info.run_id, "a step that did not run again keeps its run"
    assert (
        kept.data.tags["mlflow.parentRunId"] == new.data.tags["mlflow.parentRunId"] != old_parent.info.run_id
    )


def test_a_stage_under_way_keeps_its_run_when_only_how_it_runs_was_changed(config):
    fake_results.unfinish(RESULTS / "activation/pretrain")
    track.replay(config, RESULTS, "FAILED")
    before = step(config, "activation/pretrain")
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["pretrain"] |= {"save_every": 1, "engine": {"gradient_checkpointing": True}}
    changed = configuration.check(raw)
    track.replay(changed, RESULTS, "FAILED")
    under_way = step(changed, "activation/pretrain")
    assert under_way.info.run_id == before.info.run_id
    parents = [run.data.tags["mlflow.parentRunId"] for run in (before, under_way)]
    assert parents[0] != parents[1], "it is the new configuration's"
    fake_results.finish(changed, "pretrain", ["model"], {"parameters": 1}, "activation")
    track.replay(changed, RESULTS, "FAILED")
    assert step(changed, "activation/pretrain").info.run_id == before.info.run_id


def test_what_an_older_configuration_made_stays_with_it(config, capsys):
    track.replay(config, RESULTS, "FINISHED")
    (old,) = runs(config, kind="workflow")
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["pretrain"]["steps"] = 7
    changed = configuration.check(raw)
    track.start(changed, RESULTS)
    for status in (None, "FAILED"):
        track.replay(changed, RESULTS, status)
        (new,) = [run for run in runs(changed, kind="workflow") if run.info.run_id != old.info.run_id]
        assert new.info.status == (status or "RUNNING")
    capsys.readouterr()
    hooks.finish(changed, "FINISHED")
    (new,) = [run for run in runs(changed, kind="workflow") if run.info.run_id != old.info.run_id]
    assert new.data.metrics == {}
    assert "after pretrain" not in new.data.tags["mlflow.note.content"]
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    assert client.list_artifacts(new.info.run_id) == []
    parents = {
        run.data.tags["moesaic.step_key"]: run.data.tags["mlflow.parentRunId"]
        for run in runs(config, kind="step", superseded="false")
    }
    kept = {key for key, parent in parents.items() if parent == old.info.run_id}
    assert kept == {"report"} | {
        key
        for variant in ("activation", "random")
        for key in (f"{variant}/pretrain", f"{variant}/evaluate/pretrain")
    }
    assert "No table" in capsys.readouterr().err

    for variant in changed.variants:
        fake_results.again(changed, "pretrain", variant)
        fake_results.again(changed, "evaluate", variant, "pretrain")
    fake_results.report(changed)
    hooks.finish(changed, "FINISHED")
    (new,) = [run for run in runs(changed, kind="workflow") if run.info.run_id != old.info.run_id]
    assert "activation/pretrain/bits_per_byte" in new.data.metrics
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(changed, superseded="false")} == {
        new.info.run_id
    }
    assert "bits/byte" in capsys.readouterr().err


def test_changed_input_gives_a_new_run(config):
    track.replay(config, RESULTS)
    old = step(config, "activation/pretrain")
    path = RESULTS / "prepare/tokens/manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"metrics": raw["metrics"] | {"block": 99}}))
    fake_results.again(config, "construct", "activation")
    pretrain_again(config)
    track.replay(config, RESULTS)
    assert step(config, "activation/pretrain").info.run_id != old.info.run_id


def test_a_step_made_by_hand_with_other_settings_is_named_at_the_end(config, capsys):
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw["pretrain"]["steps"] = 7
    pretrain_again(configuration.check(raw))
    fake_results.again(config, "evaluate", "activation", "pretrain")
    fake_results.report(config)
    hooks.finish(config, "FINISHED")
    said = capsys.readouterr().err
    assert "--forcerun results/activation/pretrain/manifest.json\n" in said
    assert "bits/byte" not in said
    pretrain_again(config)
    fake_results.again(config, "evaluate", "activation", "pretrain")
    fake_results.report(config)
    hooks.finish(config, "FINISHED")
    said = capsys.readouterr().err
    assert "WARNING" not in said
    assert "bits/byte" in said


def test_step_made_afresh_with_equal_settings_gives_a_new_run(config):
    """Its metrics would otherwise be drawn over the old ones."""
    track.replay(config, RESULTS)
    old = step(config, "activation/pretrain")
    path = RESULTS / "activation/pretrain/run.json"
    files.write_json(path, json.loads(path.read_text()) | {"started": "2026-11-24T09:00:00+00:00"})
    track.replay(config, RESULTS)
    assert step(config, "activation/pretrain").info.run_id != old.info.run_id


def test_running_step_is_shown_as_running(config):
    folder = RESULTS / "random/pretrain"
    fake_results.unfinish(folder)
    files.write_json(folder / "work" / "lease.json", {})
    track.start(config, RESULTS)
    track.replay(config, RESULTS)
    assert step(config, "random/pretrain").info.status == "RUNNING"
    assert runs(config, kind="workflow")[0].info.status == "RUNNING", (
        "sync closes nothing that is not finished"
    )
    (folder / "work" / "lease.json").unlink()
    track.replay(config, RESULTS)
    assert step(config, "random/pretrain").info.status == "FAILED"


def test_two_folders_with_equal_configurations_do_not_mix(config, tmp_path, monkeypatch):
    uri = f"sqlite:///{Path('mlflow.db').absolute()}"
    shared = config.model_copy(update={"track": config.track.model_copy(update={"uri": uri})})
    track.replay(shared, RESULTS)
    shutil.copytree("results", tmp_path / "other" / "results")
    monkeypatch.chdir(tmp_path / "other")
    track.replay(shared, RESULTS)
    track.replay(shared, RESULTS)
    assert len(runs(shared, kind="workflow")) == 2
    assert not runs(shared, superseded="true")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "link")
    track.replay(shared, RESULTS)
    assert len(runs(shared, kind="workflow")) == 2, "another path of the same folder"


def test_moved_folder_finds_its_artifacts(config, tmp_path, monkeypatch):
    track.replay(config, RESULTS)
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    before = counts()
    track.start(config, RESULTS)
    track.replay(config, RESULTS)
    assert counts() | {"tags": 0} == before | {"tags": 0}
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    run = step(config, "dense/evaluate")
    assert "/there/mlartifacts/" in run.info.artifact_uri
    assert "scores.json" in [item.path for item in client.list_artifacts(run.info.run_id)]


def test_changes_name_keys_and_whole_variants():
    old = {"name": "a", "distill.steps": "10", "variants.x.experts.split": "random", "tune.steps": "3"}
    new = {
        "name": "a",
        "distill.steps": "20",
        "variants.y.experts.split": "random",
        "variants.y.experts.shared": "5",
    }
    found = describe.changes(new, old)
    assert found == [
        "distill.steps: 10 -> 20", "variant y added", "variant x removed", "tune.steps: 3 -> none",
    ]  # fmt: skip
    assert describe.workflow_title("a", found) == "a (distill.steps: 10 -> 20, 3 more)"
    assert describe.workflow_title("a", describe.changes(old, old)) == "a"
    assert describe.changes({"k": "v" * 100}, {}) == [f"k: none -> {'v' * 37}..."]


def test_every_step_run_has_a_description(config):
    track.replay(config, RESULTS, "FINISHED")
    for run in runs(config, kind="step"):
        assert run.data.tags["mlflow.note.content"], run.info.run_name
