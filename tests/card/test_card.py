"""Exported models and their cards, read back with the hub library's own classes."""

import dataclasses
import json
import re
import shutil
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from report import fake_results
from report.fake_results import again

from moesaic import config as configuration
from moesaic.card import export, parent, story
from moesaic.errors import InputError
from moesaic.flow import files, manifest, paths
from moesaic.flow.step import STEPS
from moesaic.settings import step_settings

PARENT_CARD = """---
license: llama3.1
license_link: https://example.org/licence
language: [en, de]
base_model: someone/older
---

# A parent
"""


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


def changed(loaded, **model):
    """The same run, with other words about the parent."""
    raw = loaded.model_dump(mode="json")
    return configuration.check(configuration.merge(raw, {"model": model}))


def exported(loaded, stage="distill", variant="activation"):
    out = export.run(loaded, variant, stage, Path(tempfile.mkdtemp(dir=".")) / "model")
    return out, ModelCard.load(out / "README.md")


def test_a_card_has_what_hubs_read(loaded):
    out, card = exported(loaded)
    assert isinstance(card.data, ModelCardData)
    assert card.data.license == "llama3.1"
    assert card.data.license_link == "https://example.org/licence"
    assert card.data.language == ["en", "de"]
    assert card.data.base_model == "someone/parent"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert {"moe", "moesaic", "conversational"} <= set(card.data.tags)
    assert card.data.model_name == "default-activation-distill"
    original = files.sha256(paths.folder("distill", "activation") / "model" / "config.json")
    assert files.sha256(out / "config.json") == original


def test_every_number_is_in_the_metadata_and_in_the_text_with_its_interval(loaded):
    _, card = exported(loaded)
    raw = yaml.safe_load(card.content.split("---")[1])
    name, results = model_index_to_eval_results(raw["model-index"])
    assert name == "default-activation-distill"
    scores = json.loads((paths.folder("evaluate", "activation", "distill") / "scores.json").read_text())
    wanted = [item for item in scores if not item["task"].startswith("routing/")]
    assert len(wanted) > 15
    assert len(results) == len(wanted)
    for item in wanted:
        (found,) = [r for r in results if (r.dataset_name, r.metric_type) == (item["task"], item["metric"])]
        assert isinstance(found, EvalResult)
        assert found.metric_value == pytest.approx(item["value"], abs=1e-6)
        assert found.metric_args["ci_low"] == pytest.approx(item["ci_low"], abs=1e-6)
        assert found.metric_args["n"] == item["n"]
        low, high = f"{item['ci_low']:.4g}", f"{item['ci_high']:.4g}"
        row = next(
            line
            for line in card.text.splitlines()
            if line.startswith(f"| {item['task']} | {item['metric']} ")
        )
        assert f"{item['value']:.4g} [{low}, {high}]" in row
    dense = json.loads((paths.folder("evaluate", None, "dense") / "scores.json").read_text())
    average = next(item for item in dense if item["task"] == "text/average")
    assert f"{average['value']:.3f}" in card.text.split("## Limits")[1]


def test_the_text_tells_stages_data_and_limits(loaded):
    _, card = exported(loaded)
    made = card.text.split("## How it was made")[1].split("## ")[0]
    assert re.findall(r"\*\*(\w+)\*\*", made) == ["construct", "pretrain", "tune", "distill"]
    assert "512 shared neurons" in made
    assert "32 experts of 32 neurons, 7 of them per token" in made
    data = card.text.split("## Data")[1].split("## ")[0]
    assert "| speeches | 250 |" in data
    assert "evaluation only" in next(line for line in data.splitlines() if "speeches" in line)
    assert "| alpaca | 961 |" in data
    limits = card.text.split("## Limits")[1].split("## ")[0]
    assert "40,960 tokens" in limits
    assert "`openbookqa_local`" in limits
    assert "`piqa_local`" not in limits
    assert "secret-place" not in card.content
    digest = files.sha256(paths.folder("tune", "activation") / "manifest.json")
    assert digest in card.text


def test_layers_left_dense_are_named(loaded, tmp_path, monkeypatch):
    shutil.copytree(Path(), tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    path = paths.folder("construct", "activation") / manifest.NAME
    made = json.loads(path.read_text())
    assert "each FFN was cut" in exported(loaded, "construct")[1].text
    made["metrics"]["dense_layers"] = [0, 29]
    path.write_text(json.dumps(made))
    assert "each FFN outside of the dense layers (0, 29) was cut" in exported(loaded, "construct")[1].text


def test_a_constructed_model_saw_no_conversations_and_was_not_trained(loaded):
    _, card = exported(loaded, "construct")
    assert "alpaca" not in card.text
    assert "calibration, training" not in card.text
    assert "It was not trained" in card.text
    assert "conversational" not in card.data.tags


def test_equal_runs_give_equal_cards(loaded):
    first, again = (exported(loaded, "tune", "random")[0] / "README.md" for _ in range(2))
    assert first.read_bytes() == again.read_bytes()


def test_before_its_evaluation_a_card_says_so(loaded):
    path = paths.folder("evaluate", "activation", "tune") / "manifest.json"
    kept = path.read_bytes()
    path.unlink()
    _, card = exported(loaded, "tune")
    path.write_bytes(kept)
    assert card.data.eval_results is None
    assert "Nothing yet" in card.text


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


def test_a_stage_begun_from_the_dense_parent_leaves_the_earlier_ones_out(loaded):
    run = export.gathered(loaded)
    points = run.of("activation")
    assert [point.stage for point in story.lineage(run, points[3])] == [
        "construct",
        "pretrain",
        "tune",
        "distill",
    ]
    points[3].model.settings["distill"]["student"]["of"] = "dense"
    assert [point.stage for point in story.lineage(run, points[3])] == ["distill"]
    assert [point.stage for point in story.lineage(run, points[2])] == ["construct", "pretrain", "tune"]


def test_a_construction_is_told_as_it_was(loaded):
    """Copies are not cut; and the finished model's logits, routed and refitted, are not the parent's."""
    point = export.gathered(loaded).of("activation")[0]
    own = point.model.settings["experts"]
    (line,) = story.stages([point])
    assert "was cut into" in line
    assert (
        "Before it got its router and its refit, with all experts on at equal weight, its logits were" in line
    )
    own |= {"split": "copy", "router": "random", "reconstruct": "none", "granularity": 8}
    (line,) = story.stages([point])
    assert "was copied 4 times into 512 shared neurons that always run and 32 experts of 32 neurons" in line
    assert "Before it got its router, with" in line
    own |= {"split": "drop", "drop": {"ratio": 0.5}}
    (line,) = story.stages([point])
    assert "32 experts of 32 neurons, 50% of their neurons drawn anew, 7" in line
    assert "Before it got its router and its new neurons, with" in line


def test_text_beside_pairs_is_training_text(loaded):
    point = export.gathered(loaded).of("activation")[-1]
    own = point.model.settings["distill"]
    own |= {"data": "samples", "pairs": {"corpus": 0.0}}
    assert story.reads(point) == {"conversations"}
    own["pairs"]["corpus"] = 0.5
    assert story.reads(point) == {"conversations", "training"}
    (line,) = story.stages([point])
    assert "next-token loss on the text below, weight 0.5" in line


def test_guessing_is_a_matter_of_right_answers(loaded):
    """An error or a drift below its floor is a good one."""
    path = paths.folder("evaluate", "activation", "distill") / "scores.json"
    kept = path.read_text()
    low = {"value": 0.02, "ci_low": 0.01, "ci_high": 0.03, "n": 40, "chance": 0.05}
    more = [
        low | {"task": task, "metric": metric}
        for task, metric in (
            ("anli_r1", "ece"),
            ("reliability/calibration", "ece"),
            ("shift/typos", "drift"),
            ("images", "grid_accuracy"),
            ("nq_open", "exact"),
            ("sst_attacked", "acc_clean"),
        )
    ]
    files.write_json(path, json.loads(kept) + more)
    try:
        _, card = exported(loaded)
    finally:
        path.write_text(kept)
    line = next(line for line in card.text.splitlines() if "guessing" in line)
    assert {"`nq_open`", "`sst_attacked`", "`openbookqa_local`"} <= set(re.findall(r"`\w+`", line))
    assert not any(name in line for name in ("anli", "calibration", "shift", "images"))


@pytest.mark.parametrize(
    ("card", "license", "expected"),
    [
        (None, None, {}),
        ("no metadata at all", None, {}),
        (None, "apache-2.0", {"license": "apache-2.0"}),
        (None, "Apache-2.0", {"license": "apache-2.0"}),
        (PARENT_CARD, "mit", {"license": "mit"}),
        ("---\nlicense:\n- mit\n---\n", None, {"license": "mit"}),
        (None, "My Own Licence, v2", {"license": "other", "license_name": "my-own-licence-v2"}),
    ],
)
def test_the_licence_is_the_parents_or_the_configurations(
    loaded, tmp_path, caplog, monkeypatch, card, license, expected
):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    at = {"kind": "folder", "path": str(tmp_path)}
    monkeypatch.setattr(export, "_check_configured", lambda *_: None)  # the run's parent is another one
    _, made = exported(changed(loaded, at=at, license=license), "construct")
    found = {
        key: made.data.get(key) for key in ("license", "license_name", "license_link") if made.data.get(key)
    }
    assert found == expected
    assert ("model.license" in caplog.text) == (not expected)
    assert ("do not name" in made.text) == (not expected)


def test_a_gguf_file_says_licence_languages_and_base(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_license("apache-2.0")
    writer.add_languages(["en", "fr"])
    writer.add_base_model_count(1)
    writer.add_base_model_repo_url(0, "https://huggingface.co/someone/older")
    writer.add_source_repo_url("https://huggingface.co/someone/base")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert parent.read_gguf(tmp_path / "m.gguf") == parent.Parent(
        "someone/base", "apache-2.0", languages=["en", "fr"]
    )
    assert parent.read_gguf(tmp_path / "gone.gguf") == parent.Parent()


def test_name_and_licence_rerun_nothing(loaded):
    other = changed(loaded, license="mit", name="a/b")
    for step in ("dense", "documents", "evaluate", "report"):
        assert step_settings(other, step) == step_settings(loaded, step)


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


class Validator(BaseHTTPRequestHandler):
    """Takes what ModelCard.validate sends, and refuses what hubs refuse: no metadata, a licence or results of the wrong form."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        problem = self.problem(body["content"])
        self.send_response(400 if problem else 200)
        text = json.dumps({"errors": [{"message": problem}] if problem else []}).encode()
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    @staticmethod
    def problem(content):
        parts = content.split("---\n")
        if not content.startswith("---\n") or len(parts) < 3:
            return "no metadata"
        data = yaml.safe_load(parts[1])
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(data.get("license", "none"))):
            return "license"
        if not all(re.fullmatch(r"[a-z]{2,3}", item) for item in data.get("language", [])):
            return "language"
        for item in data.get("model-index", []):
            for result in item["results"]:
                if not {"type", "name"} <= set(result["dataset"]) or not all(
                    "value" in m for m in result["metrics"]
                ):
                    return "model-index"
        return None

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Validator)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_librarys_validate_sends_a_whole_card_and_reads_the_answer(loaded, hub):
    out, card = exported(loaded)
    card.validate()
    ((path, body),) = hub.seen
    assert path == "/api/validate-yaml"
    assert body == {"repoType": "model", "content": (out / "README.md").read_text()}
    with pytest.raises(ValueError, match="license"):
        ModelCard(card.content.replace("license: llama3.1", "license: Some Licence")).validate()
