"""Distillation on sampled answers: the steps in rounds and shards, whole; killed and gone on."""

import contextlib
import json
import os
import random
from pathlib import Path

import pytest
from killing import came_to, command, finish, killed
from rounds_project import ROUND, here, series, step, whole
from safetensors.torch import load_file

from moesaic.errors import InputError
from moesaic.flow import files, manifest, metrics


@pytest.mark.slow
def test_fixed_pairs_end_to_end(built, tmp_path):
    path = here(built, tmp_path / "p")
    with contextlib.chdir(path.parent):
        out = whole(path, steps=12, optimizer={"lr": 3e-3})
        made_pairs = files.read_lines(ROUND / "1/pair_scores/0/pairs.jsonl")
        (theirs,) = Path("results/dense/teacher_text").glob("*/0/answers.jsonl")
        own = {item["id"]: item for item in files.read_lines(ROUND / "1/student_text/0/answers.jsonl")}
        assert len(made_pairs) == len(own) == 14, "the texts of two models differ"
        for pair, answer in zip(
            made_pairs, sorted(files.read_lines(theirs), key=lambda item: item["id"]), strict=True
        ):
            assert pair["chosen"]["ids"] == answer["answers"][0]["ids"]
            assert pair["rejected"]["ids"] == own[pair["question"]]["answers"][0]["ids"]
            assert all(
                pair[side][model] < 0 for side in ("chosen", "rejected") for model in ("logp", "student")
            )
        found = series(out)
        # The first step's mean is of a batch; over the first pass the student is nearly the one that was scored.
        margins = [
            pair["chosen"]["student"] / len(pair["chosen"]["ids"]) - pair["chosen"]["logp"] / len(pair["chosen"]["ids"])
            - pair["rejected"]["student"] / len(pair["rejected"]["ids"]) + pair["rejected"]["logp"] / len(pair["rejected"]["ids"])
            for pair in made_pairs
        ]  # fmt: skip
        assert min(margins) * 0.1 <= found["train/pairs/margin"][0][1] <= max(margins) * 0.1
        assert found["train/pairs/margin"][-1][1] > found["train/pairs/margin"][0][1]
        assert found["train/loss/balance"][0][1] > 0.9, "an MoE student keeps its balance loss"
        names = {
            "logp/teacher_of_student_text",
            "pairs/accuracy",
            "pairs/tokens_of_student_text",
            "loss/pair",
        }
        assert {f"train/{name}" for name in names} <= set(found)
        assert {f"valid/{name}/chat" for name in names} <= set(found)
        made = manifest.read(out).metrics
        (told,) = made["rounds"]
        assert told["train"] + told["validation"] == 14
        assert told["counts"]["student"]["answers"] == 14
        assert told["steps"] == 12
        shape = json.loads((out / "model/config.json").read_text())
        assert shape["num_experts_per_tok"] == 1


@pytest.mark.slow
def test_refreshed_rounds_and_shards(built, tmp_path):
    """Three shards give the bytes of one; the second round samples from the first one's student, and makes it no sparser again."""
    results = []
    for shards in (1, 3):
        path = here(built, tmp_path / str(shards))
        with contextlib.chdir(path.parent):
            out = whole(path, rounds=2, loss="dpkd-guarded", steps=3, samples={"shards": shards})
            assert len(manifest.read(out).metrics["rounds"]) == 2
            found = [sorted(ROUND.glob(f"{i}/pair_scores/*/pairs.jsonl")) for i in (1, 2)]
            assert [len(item) for item in found] == [shards, shards]
            texts = [
                sorted((p["id"], p["rejected"]["text"]) for path in item for p in files.read_lines(path))
                for item in found
            ]
            assert texts[0] != texts[1]
            read = manifest.read(ROUND / "2/student_text/0").inputs
            assert read["student"] == files.sha256(ROUND / "1/distill/manifest.json")
            assert "train/loss/pair" in series(out)
            results.append((texts[0], load_file(out / "model/model.safetensors")))
    assert results[0][0] == results[1][0]
    for name, tensor in results[0][1].items():
        assert tensor.allclose(results[1][1][name], atol=2e-4), name


@pytest.mark.slow
def test_token_losses_on_samples(built, tmp_path):
    """seqkd on the teacher's answers; cald on both, the student's marked as its own; neither scores pairs."""
    path = here(built, tmp_path / "p")
    with contextlib.chdir(path.parent):
        out = whole(path, loss="seqkd", steps=3)
        assert not ROUND.exists(), "sequence-level distillation needs no text of the student"
        assert manifest.read(out).metrics["drawn"].keys() == {"chat"}
        out = whole(path, loss="cald", steps=3, samples={"text": "both"}, mixture={"weights": "uniform"})
        assert not (ROUND / "1/pair_scores").exists()
        drawn = manifest.read(out).metrics["drawn"]
        assert drawn["chat"] > 0
        assert drawn["chat-student"] > 0
        (told,) = manifest.read(out).metrics["rounds"]
        assert told["counts"]["teacher"]["answers"] == told["counts"]["student"]["answers"] == 14


@pytest.mark.slow
def test_the_corpus_term(built, tmp_path):
    """Algorithm 1's language-model term: a block of the corpus beside each pair, and a better model of the corpus for it."""
    path = here(built, tmp_path / "p")
    losses = []
    with contextlib.chdir(path.parent):
        for weight in (0.0, 2.0):
            out = whole(path, steps=20, optimizer={"lr": 3e-3}, pairs={"corpus": weight, "alarm_drop": None})
            assert ("tokens" in manifest.read(out).inputs) == bool(weight)
            from moesaic.train import stage
            from moesaic.train.objectives import Trainee, Weights
            from moesaic.train.streams import Sample, TextStream, collate, count_targets

            model = stage.load_stage_model(manifest.read(out))
            stream = TextStream(manifest.read("results/prepare/tokens"), "validation", ["far"])
            rows = stream.rows([Sample(name, 0) for name in stream.sizes])
            batch = collate(rows, list(stream.sizes), count_targets(rows), 0.0, model.device)
            losses.append(float(Trainee(model, Weights()).eval()(batch)[0].detach()))
    assert losses[1] < losses[0] - 0.1


@pytest.mark.slow
def test_collapse_stops_the_stage(built, tmp_path):
    path = here(built, tmp_path / "p")
    with contextlib.chdir(path.parent):
        wild = {"steps": 60, "optimizer": {"lr": 3e-2}, "pairs": {"alarm_drop": 1.0, "alarm_patience": 2}}
        with pytest.raises(
            InputError, match=r"activation/distill: collapse: the student's own text has lost"
        ):
            whole(path, **wild)
        assert not Path("results/activation/distill/manifest.json").exists()
        out = step(path, "distill", distill=wild | {"pairs": {"alarm_drop": None}})
        own = series(out)["train/logp/student_of_student_text"]
        assert own[-1][1] < own[0][1] - 1.0, "the alarm was right"
        drift = [value for _, value in series(out)["train/pairs/drift"]]
        assert drift[0] == pytest.approx(0.0, abs=1e-4), (
            "before the first update the answers are as likely as when they were given"
        )
        assert drift[-1] < -1.0


@pytest.mark.slow
def test_a_guarded_round_ends_when_its_pairs_are_stale(built, tmp_path):
    path = here(built, tmp_path / "p")
    with contextlib.chdir(path.parent):
        guarded = {
            "rounds": 2, "loss": "dpkd-guarded", "steps": 30, "optimizer": {"lr": 1e-2}, "pairs": {"anchor": 0.0, "refresh_drop": 0.3, "alarm_drop": None},
        }  # fmt: skip
        one, two = manifest.read(whole(path, **guarded)).metrics["rounds"]
        assert one["steps"] < 30
        assert two["steps"] == 30, "nothing comes after the last round"


@pytest.mark.slow
def test_killed_in_every_step_equals_uninterrupted(built, tmp_path):
    """kill -9 while the teacher answers, the student answers, pairs are scored and the student is trained: the bytes of an uninterrupted run."""
    one, two = here(built, tmp_path / "whole").parent, here(built, tmp_path / "broken").parent
    names = ("teacher_text", "student_text", "pair_scores")
    calls = [command(name, "--round", "1") for name in names] + [command("distill")]
    for call in calls:
        finish(one, call)
    random.seed(os.getpid())
    parts = two / "results/cache"
    seen = 0
    for call in calls[:2]:
        moment = seen + random.choice((1, 2))
        killed(two, call, lambda moment=moment: len(list(parts.rglob("part-*.jsonl"))) >= moment)
        kept = len(list(parts.rglob("part-*.jsonl")))
        assert kept >= moment, "what had been made was kept"
        assert "are there already" in finish(two, call)
        seen = len(list(parts.rglob("part-*.jsonl")))
        assert seen in (4, 8), "14 questions in pieces of 4"
    # Scores of 14 pairs are one piece for each model: killed between the two.
    killed(two, calls[2], lambda: len(list(parts.rglob("part-*.jsonl"))) > seen)
    finish(two, calls[2])
    stage = two / "results/activation/distill"
    killed(two, calls[3], lambda: came_to(stage, 3))
    assert "going on from step" in finish(two, calls[3])
    (theirs,) = one.glob("results/dense/teacher_text/*/0")
    found = [theirs.relative_to(one) / name for name in ("answers.jsonl", "manifest.json")]
    found += [ROUND / "1/student_text/0" / name for name in ("answers.jsonl", "manifest.json")]
    found += [ROUND / "1/pair_scores/0" / name for name in ("pairs.jsonl", "manifest.json")]
    found += [
        Path("results/activation/distill") / name for name in ("manifest.json", "model/model.safetensors")
    ]
    for name in found:
        assert files.sha256(one / name) == files.sha256(two / name), name
    ids = [item["id"] for item in files.read_lines(two / ROUND / "1/pair_scores/0/pairs.jsonl")]
    assert len(ids) == len(set(ids)) == 14, "no sample lost or doubled"
    listed = [i["step"] for i in metrics.read(stage / "work" / metrics.NAME) if i["key"] == "train/loss/pair"]
    assert listed == list(range(1, 7)), "a step was logged twice or is missing"
