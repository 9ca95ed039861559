"""Exported models and their cards, read back with the hub library's own classes."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from card.cards import PARENT_CARD, changed, exported
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from moesaic.card import export, parent, story
from moesaic.flow import files, manifest, paths
from moesaic.settings import step_settings


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
    low = {"value": 0.04, "ci_low": 0.01, "ci_high": 0.06, "n": 40, "chance": 0.05}
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
    more.append(low | {"task": "worse", "metric": "acc", "value": 0.02, "ci_high": 0.03})
    files.write_json(path, json.loads(kept) + more)
    try:
        _, card = exported(loaded)
    finally:
        path.write_text(kept)
    assert "Worse than guessing: `worse`." in card.text
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
        ("---\ndescription: A model: with a colon\n---\n", "mit", {"license": "mit"}),
        ("---\nlicense: mit\nlanguage: no\n---\n", None, {"license": "mit"}),
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


def test_yaml_s_false_is_norwegian(tmp_path):
    path = tmp_path / "README.md"
    for text, languages in (("no", ["no"]), ("[no, nb]", ["no", "nb"]), ("en", ["en"])):
        path.write_text(f"---\nlanguage: {text}\n---\n")
        assert parent.read_card(path).languages == languages


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
