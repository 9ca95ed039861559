"""The suite in the real evaluation step: the dense parent, then the MoE with its differences to the parent, its routers and its stress."""

import json

import project
import pytest

from moesaic import config
from moesaic.flow import manifest, paths
from moesaic.report import gather, sections

SETTINGS = {
    "data": {
        "reliability": {
            "sets": ["sentences", "truthfulqa", "lookalikes", "cona"],
            "folder": "sets",
            "items": 6,
            "texts": 4,
            "answer_tokens": 4,
            "attacks": ["deepwordbug"],
            "attack_items": 4,
        }
    },
    "evaluate": {"suites": ["reliability"], "reliability": {"dola": {"layers": [1, 2]}}},
    "stages": ["construct"],
}


@pytest.mark.slow
def test_parent_and_moe(tmp_path, monkeypatch):
    path = project.make(tmp_path, SETTINGS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").mkdir()
    rows = "".join(f"this film number {i} was really good for you,{i % 2}\n" for i in range(8))
    (tmp_path / "sets/sentences.csv").write_text("sentence,label\n" + rows)
    truth = "".join(f"Does thing {i} grow?,No,No; Never,Yes; Always\n" for i in range(4))
    head = "Question,Best Answer,Correct Answers,Incorrect Answers\n"
    (tmp_path / "sets/TruthfulQA.csv").write_text(head + truth)
    for step in ("dense", "documents", "tokens", "reliability", "chat", "tasks"):
        project.run(path, step)
    project.run(path, "construct", "activation")
    dense = project.run(path, "evaluate", stage="dense")
    moe = project.run(path, "evaluate", "activation", "construct")

    assert not (dense / "paired.json").exists()
    found = manifest.read(moe)
    assert found.metrics["missing_sets"] == ["cona"]
    assert {item.path for item in found.outputs} >= {"paired.json", "reliability.json"}
    scores = {(row["task"], row["metric"]): row for row in json.loads((moe / "scores.json").read_text())}
    parent = {(row["task"], row["metric"]): row for row in json.loads((dense / "scores.json").read_text())}
    details = json.loads((moe / "reliability.json").read_text())
    assert len(details["experts"]) == 4
    assert ("shift/typos", "drift") in scores
    assert ("shift/typos", "bits_per_byte") in parent
    assert ("shift/typos", "drift") not in parent
    paired = {(row["task"], row["metric"]): row for row in json.loads((moe / "paired.json").read_text())}
    for key in (
        ("text/average", "bits_per_byte"), ("shift/capitals", "bits_per_byte"), ("rel_sentences_plain", "acc"), ("rel_sentences_tweet", "ece"),
        ("reliability/style", "acc"), ("reliability/over_refusal", "refusal"), ("reliability/hallucination_dola", "acc"),
        ("rel_truthfulqa_mc2_dola", "acc"), ("attack/deepwordbug", "acc_attacked"),
    ):  # fmt: skip
        assert paired[key]["value"] == pytest.approx(scores[key]["value"] - parent[key]["value"], abs=3e-6), (
            key
        )
    assert (
        paired["shift/capitals", "bits_per_byte"]["ci_low"]
        <= paired["shift/capitals", "bits_per_byte"]["value"]
    )

    plan = paths.plan_step(config.load(path), "report")
    run = gather.gather(plan.settings, {name: manifest.read(where) for name, where in plan.inputs.items()})
    html = sections._reliability(run)
    assert "safety-tuned-llamas/data/evaluation/I-CoNa.json FOLDER/" in html
    assert html.count("<svg") == 3
    assert "one expert gone, worst" in html
    assert "gained by DoLa" in html
    assert "accuracy under attack, %" in html
    assert (
        scores["attack/deepwordbug", "acc_attacked"]["value"]
        <= scores["attack/deepwordbug", "acc_clean"]["value"]
    )
