"""Parts of distillation in rounds: pairs and counts by hand, the watch, what is planned, shared, refused and reported."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import project
import pytest
from rounds_project import CHANGES, here, loaded, step

from moesaic import config
from moesaic.distill import pairs, sampling, scoring
from moesaic.errors import InputError
from moesaic.flow import paths, shared
from moesaic.report import instructions


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


def test_what_cannot_be_trained_is_said(built, tmp_path):
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
    path = here(built, tmp_path / "p")
    with contextlib.chdir(path.parent):
        with pytest.raises(InputError, match=r"round 2 is not between 1 and distill\.rounds \(1\)"):
            step(path, "student_text", paths.Part(2, 0))
        with pytest.raises(InputError, match=r"shard 1 is not between 0 and distill\.samples\.shards"):
            step(path, "teacher_text", paths.Part(None, 1))
        with pytest.raises(
            InputError, match=r"samples\.sources: no text or instruction set named 'poems'; there are: chat"
        ):
            step(path, "student_text", paths.Part(1, 0), distill={"samples": {"sources": ["poems"]}})
        with pytest.raises(InputError, match=r"no question of at most 2 tokens \(\d+ are longer\)"):
            step(path, "student_text", paths.Part(1, 0), distill={"samples": {"max_prompt": 2}})
        with pytest.raises(InputError, match=r"distill\.data is chat; only with samples"):
            step(path, "pair_scores", paths.Part(1, 0), distill={"data": "chat", "loss": "kd"})


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


def watched(drift):
    return {pairs.DRIFT: drift, "train/logp/student_of_teacher_text": -2.0}


def test_the_watch_goes_on_where_it_was():
    """Over a kill too."""
    options = {"alarm_drop": 1.0, "alarm_patience": 2, "refresh_drop": 0.5}
    first = pairs.Collapse("v/distill", options, refresh=True)
    first.check(watched(0.0))
    assert not first.enough(1, watched(0.0))
    first.check(watched(-1.5))
    resumed = pairs.Collapse("v/distill", options, refresh=True)
    resumed.load_state(json.loads(json.dumps(first.state())))
    assert not resumed.enough(2, watched(-0.4))
    assert resumed.enough(2, watched(-0.6))
    with pytest.raises(InputError, match=r"v/distill: collapse: .* has lost 1\.60 nats"):
        resumed.check(watched(-1.6))
    assert not pairs.Collapse("v", options, refresh=False).enough(9, watched(-99.0))
    quiet = pairs.Collapse("v", options | {"alarm_drop": None}, refresh=False)
    for drift in (0.0, -50.0, -60.0, -70.0):
        quiet.check(watched(drift))


def test_questions_are_never_on_both_sides():
    records = [{"id": f"q{i}#{j}", "question": f"q{i}"} for i in range(10) for j in range(3)]
    train, held = pairs.split(records, 0.3, seed=1)
    assert len(train) + len(held) == 30
    assert 1 <= len({r["question"] for r in held}) <= 6
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
