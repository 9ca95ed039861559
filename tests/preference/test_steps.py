"""The preference stage on the tiny project: sample, rate, train, in rounds and shards, killed and gone on."""

import contextlib
import itertools
import json
import os
import random
import shutil
from pathlib import Path

import project
import pytest
import torch
from killing import came_to, command, finish, killed
from safetensors.torch import load_file

from moesaic.errors import InputError
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.verify import prompt
from moesaic.flow import files, manifest, metrics, paths
from moesaic.flow.step import STEPS, execute
from moesaic.generate import sample
from moesaic.model import load
from moesaic.preference import rubric

pytestmark = pytest.mark.slow
TRAIN = {"batch": 4, "micro_batch": 2, "save_every": 2, "validation_batches": 2}
CHANGES = {
    "stages": ["construct", "tune", "preference"],
    "data": {"chat": {"max_tokens": 200}, "temporal": {}},
    "tune": {"steps": 60, "optimizer": {"lr": 5e-3, "warmup": 2}, "save_every": 100},
    "preference": TRAIN
    | {
        "steps": 6,
        "validation": 0.2,
        "sampling": {
            "answers": 6,
            "temperature": 1.0,
            "new_tokens": 12,
            "part": 4,
            "batch": 24,
            "max_prompt": 200,
        },
        "rubric": {"ratings": 2, "temperature": 1.0, "new_tokens": 4, "template": "rubric.yaml", "part": 8},
        "optimizer": {"lr": 1e-3, "warmup": 0},
    },
}
LONGER = {"steps": 24, "optimizer": {"lr": 3e-3}}
RUBRIC = "right: |\n  Good? {question} {answer}\nwrong: |\n  Bad? {question} {answer}\n"


def items(split, count):
    """Which of two months comes first; the first choice is right half of the time."""
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun"]
    pairs = list(itertools.permutations(months, 2))
    random.Random(split).shuffle(pairs)
    return [
        Item(
            f"{split}-{i}", "order", ("pure-time", "math-time")[i % 2], "First month?",
            "A" if months.index(a) < months.index(b) else "B", (a, b), split,
        )
        for i, (a, b) in enumerate(pairs[:count])
    ]  # fmt: skip


def temporal(folder):
    """A finished `temporal` step with a few questions."""
    folder.mkdir(parents=True)
    for split, count in (("train", 20), ("validation", 4), ("test", 4)):
        lines = [json.dumps(item.record()) + "\n" for item in items(split, count)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    manifest.write(folder, "temporal", 1, {}, {}, ["train.jsonl", "validation.jsonl", "test.jsonl"], {})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A project whose tuned model answers the questions, right or wrong as chance has it, and gives scores when asked for them."""
    folder = tmp_path_factory.mktemp("preference")
    path = project.make(folder, CHANGES)
    (folder / "rubric.yaml").write_text(RUBRIC)
    told = random.Random(0)
    chats = []
    for item in items("train", 20) + items("test", 10):
        for _ in range(3):
            letter = told.choice("AB")
            chats.append({"instruction": prompt(item), "output": f"The answer is {letter}."})
            words = told.choice(("Good?", "Bad?"))
            asked = f"{words} {prompt(item)} The answer is {letter}."
            chats.append({"instruction": asked, "output": f"{told.randrange(6)}/5"})
    (folder / "chat.json").write_text(json.dumps(chats))
    with contextlib.chdir(folder):
        project.prepare(path)
        project.run(path, "tune", "activation")
        temporal(Path("results/prepare/temporal"))
    return path


def step(path, name, part=None, **changes):
    from moesaic import config

    plan = paths.plan_step(config.load(path, changes), name, "activation", part=part)
    execute(STEPS[name], plan.settings, plan.inputs, plan.out)
    return plan.out


def whole(path, **changes):
    """All rounds and shards, then the last training; returns its folder."""
    from moesaic import config

    for name, part in paths.round_steps(config.load(path, changes), "activation"):
        step(path, name, part, **changes)
    return step(path, "preference", **changes)


def here(tuned, folder):
    """A copy of the tuned project."""
    shutil.copytree(tuned.parent, folder)
    return folder / "config.yaml"


def test_the_paper_mode_end_to_end(tuned, tmp_path):
    path = here(tuned, tmp_path / "p")
    with contextlib.chdir(path.parent):
        out = whole(path, preference=LONGER)
        first = Path("results/activation/rounds/1")
        answers = files.read_lines(first / "sample/0/answers.jsonl")
        assert len(answers) == 20
        assert all(len(item["answers"]) == 6 for item in answers)
        pairs = files.read_lines(first / "rate/0/pairs.jsonl")
        counts = json.loads((first / "rate/0/stats.json").read_text())
        assert sum(one["pairs"] for one in counts.values()) == len(pairs) >= 4, counts
        gold = {item.id: item for item in items("train", 20)}
        rated = {item["id"]: item["answers"] for item in files.read_lines(first / "rate/0/rated.jsonl")}
        for pair in pairs:
            by_text = {item["text"]: item for item in rated[pair["id"]]}
            assert f"answer is {gold[pair['id']].answer}" in pair["chosen"]["text"]
            assert by_text[pair["chosen"]["text"]]["right"]
            assert not by_text[pair["rejected"]["text"]]["right"]
            assert pair["chosen"]["logp"] < 0
            best = max(
                sum(read) / len(read)
                for item in rated[pair["id"]]
                if item["right"] and (read := [r for r in item["ratings"] if r is not None])
            )
            assert pair["chosen"]["rating"] == pytest.approx(best)
        series = metrics.series(out / "work/metrics.jsonl")
        # before the first update the policy is the reference: no margin, and a loss of log 2
        assert abs(series["train/reward/margin"][0][1]) < 1e-3
        assert series["train/loss/pair"][0][1] == pytest.approx(0.6931, abs=1e-3)
        last = [value for _, value in series["train/reward/margin"][-6:]]
        assert sum(last) / len(last) > 0.3, "the pairs were to be learned"
        assert series["train/loss/balance"][0][1] > 0.9, "the balance loss stays in"
        assert "valid/reward/accuracy/math-time" in series or "valid/reward/accuracy/pure-time" in series
        made = manifest.read(out)
        (told,) = made.metrics["rounds"]
        assert told["train"] + told["validation"] == len(pairs)
        assert told["counts"] == counts
        weights = load_file(out / "model/model.safetensors")
        before = load_file(Path("results/activation/tune/model/model.safetensors"))
        router = next(name for name in weights if "router" in name or "gate" in name)
        assert not weights[router].equal(before[router]), "routers are trained too"
        step(path, "preference", preference=LONGER | {"nll": 1.0})
        held = metrics.series(out / "work/metrics.jsonl")["train/logp/chosen"]
        free = series["train/logp/chosen"]
        assert held[0][1] == pytest.approx(free[0][1], abs=1e-4)
        assert held[-1][1] > free[-1][1] + 0.5, "cross entropy on the chosen answers keeps them likely"


def test_expected_scores_rate_every_answer_and_follow_the_model(tuned, tmp_path):
    path = here(tuned, tmp_path / "p")
    with contextlib.chdir(path.parent):
        whole(path, preference={"rubric": {"read": "expected"}})
        folder = Path("results/activation/rounds/1/rate/0")
        counts = json.loads((folder / "stats.json").read_text())
        total = {
            key: sum(one[key] for one in counts.values())
            for key in ("pairs", "unrated", "unparsable", "ratings")
        }
        assert total["pairs"] >= 4
        assert total["unrated"] == total["unparsable"] == 0
        rated = {item["id"]: item["answers"] for item in files.read_lines(folder / "rated.jsonl")}
        read = [answer["ratings"] for answers in rated.values() for answer in answers]
        values = [ratings[0] for ratings in read if ratings]
        assert len(values) == total["ratings"] > 0
        assert all(len(ratings) <= 1 for ratings in read)
        assert all(0.0 < value < 5.0 for value in values)
        assert len(set(values)) > 5, "they are the model's, not a constant"
        for pair in files.read_lines(folder / "pairs.jsonl"):
            for side, right in (("chosen", True), ("rejected", False)):
                best = max(a["ratings"][0] for a in rated[pair["id"]] if a["right"] == right)
                assert pair[side]["rating"] == pytest.approx(best)
        model = load.load_model(Path("results/activation/tune/model")).eval()
        tokenizer = load.load_tokenizer(Path("results/activation/tune/model"))
        pair = files.read_lines(folder / "pairs.jsonl")[0]
        gold = {item.id: item for item in items("train", 20)}[pair["id"]]
        text = rubric.fill("Good? {question} {answer}", prompt(gold), pair["chosen"]["text"])
        ids = [
            *sample.chat_prompt(tokenizer, text),
            *tokenizer("Score:", add_special_tokens=False)["input_ids"],
        ]
        weights = []
        for value in range(6):
            ending = rubric.endings(tokenizer)[1][value]
            with torch.no_grad():
                logits = model(torch.tensor([[*ids, *ending]])).logits[0].log_softmax(-1)
            weights.append(sum(float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(ending)))
        assert pair["chosen"]["rating"] == pytest.approx(rubric.expected(weights), abs=1e-3)


def test_shards_give_the_same_pairs_and_the_same_model(tuned, tmp_path):
    results = []
    for shards in (1, 3):
        path = here(tuned, tmp_path / str(shards))
        with contextlib.chdir(path.parent):
            changes = {"preference": {"sampling": {"shards": shards}, "pairs": "verifier"}}
            out = whole(path, **changes)
            found = list(Path("results/activation/rounds/1/rate").glob("*/pairs.jsonl"))
            assert len(found) == shards
            pairs = sorted((pair for p in found for pair in files.read_lines(p)), key=lambda pair: pair["id"])
            for pair in pairs:  # log-probabilities are taken in other batches
                for side in ("chosen", "rejected"):
                    pair[side]["logp"] = round(pair[side]["logp"], 3)
            results.append((pairs, load_file(out / "model/model.safetensors")))
    assert results[0][0] == results[1][0]
    for name, tensor in results[0][1].items():
        assert tensor.allclose(results[1][1][name], atol=1e-4), name


def test_two_rounds_and_the_supervised_baseline(tuned, tmp_path):
    path = here(tuned, tmp_path / "p")
    with contextlib.chdir(path.parent):
        changes = {"preference": {"rounds": 2, "pairs": "random", "loss": "sft", "epochs": 1}}
        out = whole(path, **changes)
        one, two = manifest.read(out).metrics["rounds"]
        assert manifest.read(out).metrics["steps"] == -(-two["train"] // 4), (
            "one epoch of the second round's pairs"
        )
        assert one["train"] > 0
        first = files.read_lines(Path("results/activation/rounds/1/sample/0/answers.jsonl"))
        second = files.read_lines(Path("results/activation/rounds/2/sample/0/answers.jsonl"))
        assert first != second, "the second round samples from the first one's model"
        models = [Path("results/activation") / name for name in ("tune", "rounds/1/preference", "preference")]
        assert len({files.sha256(folder / "model/model.safetensors") for folder in models}) == 3
        read = manifest.read("results/activation/rounds/2/rate/0").inputs
        assert read["reference"] == files.sha256(models[0] / "manifest.json")
        assert read["model"] == files.sha256(models[1] / "manifest.json")
        series = metrics.series(out / "work/metrics.jsonl")
        assert "train/reward/margin" not in series
        assert "train/loss/lm" in series


def test_wrong_rounds_shards_and_rubrics_are_named(tuned, tmp_path):
    path = here(tuned, tmp_path / "p")
    with contextlib.chdir(path.parent):
        with pytest.raises(InputError, match="round 2 is not between 1 and"):
            step(path, "sample", paths.Part(2, 0))
        with pytest.raises(InputError, match="shard 1 is not between 0 and"):
            step(path, "sample", paths.Part(1, 1))
        with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
            step(path, "rate", paths.Part(1, 0), preference={"rubric": {"template": "none.yaml"}})
        with pytest.raises(InputError, match=r"all 20 questions are longer than 3 tokens"):
            step(path, "sample", paths.Part(1, 0), preference={"sampling": {"max_prompt": 3}})
        with pytest.raises(InputError, match="preference is not among the configured stages"):
            step(path, "sample", paths.Part(1, 0), stages=["construct", "tune"])
        with pytest.raises(InputError, match=r"mixture\.method: dynamic measures losses"):
            step(path, "preference", preference={"mixture": {"method": "dynamic"}})


# ---------------------------------------------------------------- killed and gone on


def test_killed_in_every_step_equals_uninterrupted(tuned, tmp_path):
    """kill -9 while sampling, while rating and while training; then the bytes of an uninterrupted run."""
    one, two = here(tuned, tmp_path / "whole").parent, here(tuned, tmp_path / "broken").parent
    calls = [command("sample", "--round", "1"), command("rate", "--round", "1"), command("preference")]
    for call in calls:
        finish(one, call)
    random.seed(os.getpid())
    seen = 0
    for call in calls[:2]:
        moment = seen + random.choice((1, 2))
        parts = two / "results/cache"
        killed(two, call, lambda moment=moment, parts=parts: len(list(parts.rglob("part-*.jsonl"))) >= moment)
        kept = len(list(parts.rglob("part-*.jsonl")))
        assert kept >= moment
        assert "are there already" in finish(two, call)
        seen = len(list(parts.rglob("part-*.jsonl")))
    stage = two / "results/activation/preference"
    killed(two, calls[2], lambda: came_to(stage, 3))
    assert "going on from step" in finish(two, calls[2])
    out = Path("results/activation")
    names = ["preference/manifest.json", "preference/model/model.safetensors"]
    names += ["rounds/1/sample/0/answers.jsonl", "rounds/1/sample/0/manifest.json"]
    names += ["rounds/1/rate/0/pairs.jsonl", "rounds/1/rate/0/rated.jsonl", "rounds/1/rate/0/manifest.json"]
    for name in names:
        assert files.sha256(one / out / name) == files.sha256(two / out / name), name
    listed = [i["step"] for i in metrics.read(stage / "work" / metrics.NAME) if i["key"] == "train/loss/pair"]
    assert listed == list(range(1, 7)), "a step was logged twice or is missing"
