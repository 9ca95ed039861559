"""Distillation on sampled answers: the steps in rounds and shards, what is shared, what is refused; killed and gone on."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import project
import pytest
from killing import came_to, command, finish, killed
from safetensors.torch import load_file

from moesaic import config
from moesaic.distill import pairs, sampling, scoring
from moesaic.errors import InputError
from moesaic.flow import files, manifest, metrics, paths, shared
from moesaic.flow.step import STEPS, execute
from moesaic.report import instructions

CHANGES = {
    "stages": ["construct", "distill"],
    "data": {"chat": {"max_tokens": 120}},
    "distill": {
        "teacher": "dense", "data": "samples", "loss": "dpkd", "student": {"per_token": 1}, "steps": 6, "batch": 4, "micro_batch": 2,
        "save_every": 2, "validation": 0.2, "validation_batches": 2, "optimizer": {"lr": 1e-3, "warmup": 0},
        "samples": {"prompts": 14, "new_tokens": 10, "part": 4, "batch": 4, "max_prompt": 100},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    path = project.make(folder, CHANGES)
    with contextlib.chdir(folder):
        project.prepare(path)
    return path


def here(built, folder):
    shutil.copytree(built.parent, folder)
    return folder / "config.yaml"


def step(path, name, part=None, **changes):
    plan = paths.plan_step(config.load(path, changes), name, "activation", part=part)
    execute(STEPS[name], plan.settings, plan.inputs, plan.out)
    return plan.out


def whole(path, **distill):
    """Everything before the last training, then that; returns its folder."""
    loaded = config.load(path, {"distill": distill})
    for shard in range(loaded.distill.samples.shards):
        step(path, "teacher_text", paths.Part(None, shard), distill=distill)
    for name, part in paths.round_steps(loaded, "activation", "distill"):
        step(path, name, part, distill=distill)
    return step(path, "distill", distill=distill)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def series(out):
    return metrics.series(out / "work/metrics.jsonl")


ROUND = Path("results/activation/rounds")


@pytest.mark.slow
def test_fixed_pairs_end_to_end(built, tmp_path):
    path = here(built, tmp_path / "p")
    with contextlib.chdir(path.parent):
        out = whole(path, steps=12, optimizer={"lr": 3e-3})
        made_pairs = lines(ROUND / "1/pair_scores/0/pairs.jsonl")
        (theirs,) = Path("results/dense/teacher_text").glob("*/0/answers.jsonl")
        own = {item["id"]: item for item in lines(ROUND / "1/student_text/0/answers.jsonl")}
        assert len(made_pairs) == len(own) == 14, "the texts of two models differ"
        for pair, answer in zip(made_pairs, sorted(lines(theirs), key=lambda item: item["id"]), strict=True):
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
                sorted((p["id"], p["rejected"]["text"]) for path in item for p in lines(path))
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
            InputError, match=r"activation/distill: collapse: the student's own text fell from"
        ):
            whole(path, **wild)
        assert not Path("results/activation/distill/manifest.json").exists()
        out = step(path, "distill", distill=wild | {"pairs": {"alarm_drop": None}})
        own = series(out)["train/logp/student_of_student_text"]
        assert own[-1][1] < own[0][1] - 1.0, "the alarm was right"


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


def loaded(path, **distill):
    return config.load(path, {"distill": distill})


def test_only_the_loss_changed(built):
    """Samples and scores depend neither on the loss nor on its options; several variants read one set of teacher's answers."""
    with contextlib.chdir(built.parent):
        base = loaded(built)
        other = loaded(built, loss="dpkd-guarded", pairs={"beta": 0.5, "anchor": 1.0}, optimizer={"lr": 1e-5})
        for name in ("teacher_text", "student_text", "pair_scores"):
            plans = [
                paths.plan_step(item, name, "activation", part=paths.Part(1, 0)) for item in (base, other)
            ]
            assert plans[0] == plans[1], name
        assert paths.plan_step(base, "distill", "activation") != paths.plan_step(
            other, "distill", "activation"
        )
        warmer = loaded(built, samples={"temperature": 0.7})
        assert shared.text_folder(warmer, "activation") != shared.text_folder(base, "activation")
        raw = config.merge(
            base.model_dump(mode="json"), {"variants": {"b": {"distill": {"loss": "dpkd-guarded"}}}}
        )
        assert len(shared.texts(config.check(raw))) == 1


def test_what_cannot_be_trained_is_said(built):
    def refused(match, **distill):
        with pytest.raises(InputError, match=match):
            loaded(built, **distill)

    refused(r"loss: dpkd compares sampled answers", data="chat", student={"per_token": 1})
    refused(r"rounds: 2 rounds need sampled answers", data="chat", loss="kd", rounds=2)
    refused(r"rounds: the teacher's answers are the same", loss="kd", rounds=2)
    refused(r"samples\.text: seqkd on the student's own", loss="seqkd", samples={"text": "both"})
    refused(r"language_model: of the loss dpkd", language_model=0.5)
    refused(r"offline: the cache", offline={}, loss="kd")
    refused(r"mixture\.method: dynamic measures", mixture={"method": "dynamic"})
    with contextlib.chdir(built.parent):
        with pytest.raises(InputError, match=r"round 2 is not between 1 and distill\.rounds \(1\)"):
            step(built, "student_text", paths.Part(2, 0))
        with pytest.raises(InputError, match=r"shard 1 is not between 0 and distill\.samples\.shards"):
            step(built, "teacher_text", paths.Part(None, 1))
        with pytest.raises(InputError, match=r"no chat source named poems; there are chat"):
            step(built, "student_text", paths.Part(1, 0), distill={"samples": {"sources": ["poems"]}})
        with pytest.raises(InputError, match=r"no question of at most 2 tokens \(\d+ are longer\)"):
            step(built, "student_text", paths.Part(1, 0), distill={"samples": {"max_prompt": 2}})
        with pytest.raises(InputError, match=r"distill\.data is chat; only with samples"):
            step(built, "pair_scores", paths.Part(1, 0), distill={"data": "chat", "loss": "kd"})


def test_pairs_and_counts_by_hand():
    def record(name, *texts):
        answers = [{"ids": list(ids), "text": str(ids), "finished": True} for ids in texts]
        return {"id": name, "source": "s", "prompt": [1], "answers": answers}

    theirs = [record("a", (3, 4), (5,)), record("b", (6,), (7,))]
    own = [record("a", (3, 4), (8,)), record("b", (9,), (2,))]
    found, same = scoring.paired(theirs, own, Path("x"))
    assert same == 1
    assert [pair["id"] for pair in found] == ["a#1", "b#0", "b#1"]
    assert found[0]["rejected"]["ids"] == [8]
    with pytest.raises(InputError, match="other questions"):
        scoring.paired(theirs, own[:1], Path("x"))
    assert sampling.repetition([1, 2, 3, 4, 1, 2, 3, 4]) == (1, 5)
    assert sampling.repetition([1, 2, 3]) == (0, 0)
    assert sampling.count([{"ids": [1] * 6, "finished": False}]) == {
        "answers": 1,
        "finished": 0,
        "tokens": 6,
        "repeated": 2,
        "grams": 3,
    }


def watched(nats):
    return {f"train/logp/{name}": nats if name == "student_of_student_text" else -2.0 for name in pairs.TEXTS}


def test_the_watch_goes_on_where_it_was():
    """Alarm and drift are measured from the first step of the round, over a kill too."""
    options = {"alarm_drop": 1.0, "alarm_patience": 2, "refresh_drop": 0.5}
    first = pairs.Collapse("v/distill", options, refresh=True)
    first.check(watched(-2.0))
    assert not first.enough(1, watched(-2.0))
    first.check(watched(-3.5))
    resumed = pairs.Collapse("v/distill", options, refresh=True)
    resumed.load_state(json.loads(json.dumps(first.state())))
    assert not resumed.enough(2, watched(-2.4))
    assert resumed.enough(2, watched(-2.6))
    with pytest.raises(InputError, match=r"v/distill: collapse: .* from -2\.00 to -3\.60 nats"):
        resumed.check(watched(-3.6))
    assert not pairs.Collapse("v", options, refresh=False).enough(9, watched(-99.0))
    quiet = pairs.Collapse("v", options | {"alarm_drop": None}, refresh=False)
    for nats in (-2.0, -50.0, -60.0, -70.0):
        quiet.check(watched(nats))


def test_questions_are_never_on_both_sides():
    records = [{"id": f"q{i}#{j}", "question": f"q{i}"} for i in range(10) for j in range(3)]
    train, held = pairs.split(records, 0.3, seed=1)
    assert len(train) + len(held) == 30
    assert len({r["question"] for r in held}) == 3
    assert not {r["question"] for r in train} & {r["question"] for r in held}
    with pytest.raises(InputError, match="answers to 1 questions, at least 2"):
        pairs.split(records[:3], 0.3, seed=1)


def test_what_the_report_says_of_rounds():
    counts = {"answers": 10, "finished": 5, "tokens": 80, "repeated": 3, "grams": 30}
    nats = {
        f"{a}_of_{b}_text": -160.0 if a == b else -240.0
        for a in ("teacher", "student")
        for b in ("teacher", "student")
    }
    scored = {"teacher": counts, "student": counts, "nats": nats, "tokens": {"teacher": 80, "student": 80}}
    told = [
        {"train": 8, "validation": 2, "steps": 6, "counts": scored},
        {"train": 10, "validation": 0, "steps": 3, "counts": {"teacher": counts}},
    ]
    point = SimpleNamespace(stage="distill", variant="a<b", model=SimpleNamespace(metrics={"rounds": told}))
    table = instructions.rounds(SimpleNamespace(points=[point]))  # type: ignore[arg-type]
    assert [row[:3] for row in table.rows] == [
        ["a&lt;b", "1", "teacher"],
        ["a&lt;b", "1", "student"],
        ["a&lt;b", "2", "teacher"],
    ]
    assert table.rows[0][3:] == ["10", "50.0 %", "8", "10.0 %", "-2.00", "-3.00", "8, 2", "6"]
    assert table.rows[1][7:9] == ["-3.00", "-2.00"]
    assert instructions.rounds(SimpleNamespace(points=[])) is None  # type: ignore[arg-type]


# ---------------------------------------------------------------- killed and gone on


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
    ids = [item["id"] for item in lines(two / ROUND / "1/pair_scores/0/pairs.jsonl")]
    assert len(ids) == len(set(ids)) == 14, "no sample lost or doubled"
    listed = [i["step"] for i in metrics.read(stage / "work" / metrics.NAME) if i["key"] == "train/loss/pair"]
    assert listed == list(range(1, 7)), "a step was logged twice or is missing"


@pytest.mark.slow
def test_the_workflow_plans_rounds(tmp_path):
    """Three variants of one teacher: its answers once, and the steps of each round of each variant."""
    root = Path(__file__).parents[2]
    path = project.make(
        tmp_path,
        CHANGES | {"variants": {"fixed": {"distill": {"student": {"per_token": 2}}}, "fresh": {"distill": {"rounds": 2, "samples": {"shards": 1}}}}},
    )  # fmt: skip
    call = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(root / "Snakefile"),
        "--directory",
        str(tmp_path),
    ]
    call += [
        "--profile",
        str(root / "profiles/local"),
        "--configfile",
        str(path),
        "--cores",
        "1",
        "--dry-run",
    ]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(call, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    text = done.stdout + done.stderr
    rows = [line.split() for line in text.split("Job stats:")[1].split("\n\n")[0].splitlines()]
    jobs = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    wanted = {"teacher_text": 1, "student_text": 4, "pair_scores": 4, "distill_round": 1, "distill": 3}
    assert {name: jobs.get(name) for name in wanted} == wanted
