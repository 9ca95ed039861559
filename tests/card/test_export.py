"""Which models are exported, and which scores and histories belong to them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from card.cards import changed, exported
from report.fake_results import again

from moesaic import config as configuration
from moesaic.card import export, story
from moesaic.errors import InputError
from moesaic.flow import files, manifest, paths
from moesaic.flow.step import STEPS


def test_numbers_of_an_older_model_stay_out(loaded, tmp_path, monkeypatch):
    shutil.copytree(Path(), tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    again(loaded, "pretrain", "activation", final_loss=2.7)
    _, card = exported(loaded, "pretrain")
    assert card.data.eval_results is None
    assert "Nothing yet" in card.text
    again(loaded, "evaluate", "activation", "pretrain")
    assert exported(loaded, "pretrain")[1].data.eval_results


def test_another_version_of_a_step_is_no_other_configuration(loaded, tmp_path, monkeypatch):
    """A model that is finished stays one that can be given away; what a step gained since says nothing about parent, licence and data."""
    monkeypatch.setitem(STEPS, "dense", dataclasses.replace(STEPS["dense"], version=99))
    export.run(loaded, "activation", "construct", tmp_path / "a")
    assert (tmp_path / "a/README.md").is_file()


def test_a_card_is_of_the_configuration_of_its_model(loaded, tmp_path, monkeypatch):
    """Licence, name and data are told from the configuration."""
    with pytest.raises(InputError, match=r"results/dense: not made with the settings of this configuration"):
        export.run(changed(loaded, at={"path": "elsewhere"}), "activation", "construct", tmp_path / "a")
    raw = loaded.model_dump(mode="json")
    name = next(iter(raw["data"]["domains"]))
    other = configuration.check(configuration.merge(raw, {"data": {"domains": {name: {"held_out": True}}}}))
    with pytest.raises(InputError, match=r"construct: not made with the settings of this configuration"):
        export.run(other, "activation", "construct", tmp_path / "b")
    shutil.copytree("results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    tokens = Path("results/prepare/tokens") / manifest.NAME
    tokens.write_text(tokens.read_text() + " ")
    with pytest.raises(
        InputError, match="construct: made from other data than results/prepare/tokens holds now"
    ):
        export.run(loaded, "activation", "construct", tmp_path / "c")


def test_an_evaluation_beside_another_dense_one_stays_out(loaded, tmp_path, monkeypatch):
    shutil.copytree("results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    path = Path("results/dense/evaluate") / manifest.NAME
    path.write_text(path.read_text() + " ")
    _, made = exported(loaded)
    assert not made.data.eval_results


def test_a_history_that_is_not_there_any_more_is_refused(loaded, tmp_path, monkeypatch):
    shutil.copytree(Path(), tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    again(loaded, "pretrain", "activation", final_loss=2.7)
    message = "results/activation/tune: not made from what results/activation/pretrain holds now"
    for stage in ("tune", "distill"):
        with pytest.raises(InputError, match=f"{message}.*`snakemake results/activation/tune/manifest.json`"):
            exported(loaded, stage)
    raw = loaded.model_dump(mode="json")
    student = {"of": "dense", "per_token": None, "ffn": 512}
    changes = {"distill": {"student": student}}
    pruned = configuration.check(
        configuration.merge(raw, changes | {"variants": dict.fromkeys(loaded.variants, changes)})
    )
    again(pruned, "distill", "activation")
    exported(pruned)


def test_rounds_belong_to_the_history(loaded, tmp_path, monkeypatch):
    shutil.copytree(Path(), tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(
        export, "_check_configured", lambda *_: None
    )  # of the rounds' own steps there are only names
    samples = {"data": "samples", "loss": "dpkd", "rounds": 2}
    raw = loaded.model_dump(mode="json")
    sampled = configuration.check(configuration.merge(raw, {"distill": samples}))
    metrics = manifest.read(paths.folder("distill", "activation")).metrics
    shape = json.loads((paths.folder("distill", "activation") / "model/config.json").read_text())
    for part in (paths.Part(1), None):
        plan = paths.plan_step(sampled, "distill", "activation", part=part)
        for path in plan.inputs.values():
            if not path.exists():
                files.write_json(path, {})
        files.write_json(plan.out / "model" / "config.json", shape)
        own = [{"steps": 5, "tokens": 700}] * (1 if part else 2)
        manifest.write(
            plan.out,
            "distill",
            STEPS["distill"].version,
            plan.settings,
            plan.inputs,
            ["model"],
            metrics | {"rounds": own},
        )
    _, made = exported(sampled)
    assert "10 steps, 1,400 tokens" in made.text, "of both rounds"
    again(sampled, "tune", "activation", final_loss=2.7)
    exported(sampled, "tune")
    with pytest.raises(
        InputError, match="rounds/1/distill: not made from what results/activation/tune holds"
    ):
        exported(sampled)
    first = paths.folder("distill", "activation", part=paths.Part(1)) / manifest.NAME
    made = json.loads(first.read_text())
    made["settings"]["distill"]["student"]["of"] = "dense"
    first.write_text(json.dumps(made))
    run = export.gathered(sampled)
    assert [point.stage for point in story.lineage(run, run.of("activation")[-1])] == ["distill"]


@pytest.mark.parametrize(
    ("variant", "stage", "message"),
    [
        ("nobody", "tune", "--variant nobody"),
        ("activation", "prepare", "--stage prepare"),
        ("random", "distill", "not finished"),
        ("random", "tune", "differs from the manifest"),
        ("activation", "tune", "exists already"),
    ],
)
def test_what_cannot_be_exported_is_named(loaded, tmp_path, variant, stage, message):
    out = tmp_path / "out"
    if "exists" in message:
        out.mkdir()
    done, weights = (
        paths.folder("distill", "random") / "manifest.json",
        paths.folder("tune", "random") / "model/config.json",
    )
    kept = done.read_bytes(), weights.read_text()
    done.unlink()
    weights.write_text(kept[1].replace('"num_hidden_layers": 30', '"num_hidden_layers": 31'))
    try:
        with pytest.raises(InputError, match=re.escape(message)):
            export.run(loaded, variant, stage, out)
    finally:
        done.write_bytes(kept[0])
        weights.write_text(kept[1])
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "manifest.json",
            {"metrics": {"adapter": {"method": "lateral", "merged": False}}},
            "only whole with its adapter, for which vLLM",
        ),
        ("model/config.json", {"model_type": "moesaic_depth"}, "`moesaic fold` first"),
    ],
)
def test_half_of_a_model_is_not_exported_for_vllm(loaded, tmp_path, file, changes, message):
    path = paths.folder("distill", "activation") / file
    kept = path.read_text()
    path.write_text(json.dumps(configuration.merge(json.loads(kept), changes)))
    try:
        with pytest.raises(InputError, match=message):
            export.run(loaded, "activation", "distill", tmp_path / "out", "vllm")
    finally:
        path.write_text(kept)
    assert not (tmp_path / "out").exists()
