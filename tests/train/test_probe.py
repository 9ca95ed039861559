"""The probe of a mixture: hits counted token by token, blind to padding, ranks and earlier random draws; and a whole tuning run with it."""

import contextlib
import copy
import json
import logging
import shutil
import time
import types

import numpy as np
import project
import pytest
import torch
from tiny import tiny_llama, tiny_moe

from moesaic.data import mixtures
from moesaic.errors import InputError
from moesaic.flow import files, metrics
from moesaic.model import families
from moesaic.model.depth import skip
from moesaic.schema import Mixture, Tune
from moesaic.train import probe
from moesaic.train.clock import Clock
from moesaic.train.job import Job
from moesaic.train.objectives import IGNORE, Trainee, Weights
from moesaic.train.streams import Row

SPANS = {"a": (3, 60), "b": (100, 157), "c": (300, 357)}


class Rows:
    """Rows of random ids from a span of the vocabulary per dataset, of several lengths; the second half is the answer."""

    def __init__(self, spans=SPANS, rows=12):
        self.sizes = dict.fromkeys(spans, rows)
        self.ids = {}
        for name, (low, high) in spans.items():
            random = np.random.default_rng(low)
            lengths = random.integers(5, 30, rows)
            self.ids[name] = [random.integers(low, high, n).astype(np.int32) for n in lengths]

    def rows(self, samples):
        found = []
        for sample in samples:
            ids = self.ids[sample.domain][sample.row]
            targets = np.append(ids[1:].astype(np.int64), IGNORE)
            targets[: len(ids) // 2] = IGNORE
            found.append(Row(ids, targets))
        return found


class OneOf:
    """An engine without an optimizer: rank `rank` of `world`, whose sums stay its own."""

    def __init__(self, trainee, rank=0, world=1):
        self.trainee, self.rank, self.world = trainee, rank, world
        self.device = torch.device("cpu")
        self.clock = Clock(self.device)

    def sum(self, values):
        return values

    def share(self, value):
        return value

    @contextlib.contextmanager
    def evaluating(self):
        self.trainee.eval()
        with torch.no_grad():
            yield self.trainee
        self.trainee.train()


def job(model, stream=None, micro=4, method="gate-load", **own):
    stream = stream or Rows()
    mixture = Mixture(method=method, probe={"rows": 8, "layers": "all"} | own)
    settings = Tune(batch=8, micro_batch=micro, mixture=mixture).model_dump(mode="json")
    made = mixtures.build(settings["mixture"], stream.sizes, {})
    context = types.SimpleNamespace(name="v/tune", settings={"seed": 5, "tune": settings})
    return Job(context, settings, Trainee(copy.deepcopy(model), Weights()), made, stream, stream, None)


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return tiny_moe(tmp_path_factory.mktemp("moe"), shared=32).model


def measured(work, step=10):
    return probe.measure(work, OneOf(work.trainee), step)


def test_every_token_counts_once_per_expert_it_chose(moe):
    work = job(moe)
    found = measured(work)
    assert found.kind == "gate"
    for name, rows in found.rows.items():
        lengths = [len(row.ids) for row in probe.draw(work, name, 8, 10)]
        assert rows.shape == (8, 3, 4)
        assert rows.sum(axis=2).tolist() == [[2.0 * n] * 3 for n in lengths]
    # against the routers' own choices, row by row
    row = probe.draw(work, "b", 8, 10)[3]
    with families.Routing(moe) as routing, torch.no_grad():
        moe.eval()(torch.from_numpy(row.ids[None].astype(np.int64)))
    chosen = [np.bincount(routing.indices[i].flatten(), minlength=4) for i in range(3)]
    assert found.rows["b"][3].tolist() == np.array(chosen).tolist()


def test_padding_changes_nothing(moe):
    alone, padded = measured(job(moe, micro=1)), measured(job(moe, micro=8))
    assert len({len(ids) for ids in Rows().ids["a"]}) > 3, "without several lengths nothing is padded"
    for name in SPANS:
        assert (alone.rows[name] == padded.rows[name]).all()


def test_a_cached_teacher_is_not_asked(moe):
    """A row of an offline teacher has its values for all targets, a probe only one."""

    class Taught(Rows):
        def rows(self, samples):
            def unread():
                raise AssertionError("the cache was read")

            return [row._replace(taught=unread) for row in super().rows(samples)]

    alone, beside = measured(job(moe)), measured(job(moe, stream=Taught()))
    for name in SPANS:
        assert (alone.rows[name] == beside.rows[name]).all()


def test_a_resident_teacher_is_not_asked(moe):
    work, alone = job(moe), measured(job(moe))
    teacher = copy.deepcopy(moe).requires_grad_(False)
    teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    work.trainee = Trainee(work.trainee.model, Weights(kl=0.5), teacher)
    kept = work.trainee.teacher
    beside = measured(work)
    for name in SPANS:
        assert (alone.rows[name] == beside.rows[name]).all()
    assert work.trainee.teacher is kept


def test_answers_alone_can_be_read(moe):
    work = job(moe, tokens="answer")
    found = measured(work)
    for name in SPANS:
        answers = [(row.targets != IGNORE).sum() for row in probe.draw(work, name, 8, 10)]
        assert found.rows[name].sum(axis=2).tolist() == [[2.0 * n] * 3 for n in answers]
    rows = [
        Row(np.arange(5), np.array([IGNORE, 2, 3, IGNORE, IGNORE])),
        Row(np.arange(2), np.array([1, IGNORE])),
    ]
    assert probe.counted(rows, "answer").tolist() == [
        [False, False, True, True, False],
        [False, True, False, False, False],
    ]
    assert probe.counted(rows, "all").sum(dim=1).tolist() == [5, 2]


@pytest.mark.parametrize("world", [2, 3])
def test_the_same_on_any_number_of_ranks(moe, world):
    work = job(moe)
    whole = measured(work)
    parts = [probe.measure(work, OneOf(work.trainee, rank, world), 10) for rank in range(world)]
    for name in SPANS:
        assert (sum(part.rows[name] for part in parts) == whole.rows[name]).all()
        assert any((part.rows[name] != whole.rows[name]).any() for part in parts)


def test_nothing_of_the_training_is_touched_and_each_update_reads_other_rows(moe):
    work = job(moe)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    weights = {name: p.clone() for name, p in work.trainee.named_parameters()}
    hooks = [len(part.router._forward_hooks) for part in families.parts(work.trainee.model)]
    work.trainee.train()
    first, again, later = measured(work), measured(work), measured(work, 20)
    assert torch.equal(torch.get_rng_state(), before)
    assert work.trainee.training
    assert all(torch.equal(p, weights[name]) for name, p in work.trainee.named_parameters())
    assert hooks == [len(part.router._forward_hooks) for part in families.parts(work.trainee.model)]
    assert all((first.rows[n] == again.rows[n]).all() for n in SPANS)
    assert any((first.rows[n] != later.rows[n]).any() for n in SPANS)
    torch.rand(3)
    np.random.random(3)
    assert all((measured(work).rows[n] == first.rows[n]).all() for n in SPANS)


def test_layers_can_be_chosen(moe):
    every, last = measured(job(moe)), measured(job(moe, layers="last"))
    some = measured(job(moe, layers=[2, 0]))
    for name in SPANS:
        assert (last.rows[name] == every.rows[name][:, 2:]).all()
        assert (some.rows[name] == every.rows[name][:, [2, 0]]).all()
    with pytest.raises(InputError, match=r"mixture\.probe\.layers: 7: take layers with experts: 0, 1, 2"):
        measured(job(moe, layers=[1, 7]))


def skipping(moe):
    """Layer 0 without its FFN, layer 1 with a router that lets some tokens through."""
    model = copy.deepcopy(moe)
    skip.attach(model, [1], off=[0], threshold=0.5)
    with torch.no_grad():
        skip.routers(model)[0].weight.normal_(generator=torch.Generator().manual_seed(3))
    return model


def test_only_tokens_that_run_count_where_layers_are_skipped(moe):
    work = job(skipping(moe), micro=8)
    found = measured(work)
    lengths = {name: [len(row.ids) for row in probe.draw(work, name, 8, 10)] for name in SPANS}
    shares = []
    for name, rows in found.rows.items():
        assert not rows[:, 0].any(), "a layer that never runs chooses nothing"
        assert rows[:, 2].sum(axis=1).tolist() == [2.0 * n for n in lengths[name]]
        shares += (rows[:, 1].sum(axis=1) / (2 * np.array(lengths[name]))).tolist()
    assert 0.05 < np.mean(shares) < 0.95
    alone = measured(job(skipping(moe), micro=1))
    assert all((alone.rows[name] == found.rows[name]).all() for name in SPANS)


def test_a_dense_model_is_read_by_its_hidden_states_and_says_so(caplog):
    work = job(tiny_llama(), layers="last")
    with caplog.at_level(logging.WARNING, "moesaic.train"):
        found = measured(work)
    assert "gate-load finds no experts in this model (LlamaForCausalLM)" in caplog.text
    assert found.kind == "hidden"
    assert found.rows["a"].shape == (8, 1, 48)
    assert np.linalg.norm(found.rows["a"], axis=2) == pytest.approx(np.ones((8, 1)))
    row = probe.draw(work, "a", 8, 10)[5]
    seen = []
    handle = work.trainee.model.model.layers[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        work.trainee.model(torch.from_numpy(row.ids[None].astype(np.int64)))
    handle.remove()
    state = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    mean = state[0].double().mean(dim=0)
    assert found.rows["a"][5, 0] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-6)
    values = work.mixture.look(found)
    assert set(work.mixture.weights) == set(SPANS)
    assert not any(key.startswith("mixture/load") for key in values)


@pytest.mark.parametrize("method", ["gate-load", "gate-load-robust", "sentence-embedding"])
def test_a_duplicate_dataset_loses_weight(moe, method):
    stream = Rows(SPANS | {"copy": SPANS["a"]}, rows=200)
    work = job(moe, stream, method=method, rows=120, micro=8)
    for update in range(1, 5):
        values = probe.update(work, OneOf(work.trainee), 10 * update)
    weights = work.mixture.weights
    assert max(weights["a"], weights["copy"]) < min(0.25, weights["b"], weights["c"])
    assert values["mixture/distance/a/copy"] < values["mixture/distance/a/b"] / 2
    assert sum(weights.values()) == pytest.approx(1.0)


# ---------------------------------------------------------------- a whole stage


def chats(folder):
    """Four sets of conversations of different kinds."""
    words = [w for p in sorted((folder / "text" / "prose").glob("*.txt")) for w in p.read_text().split()]
    kinds = {
        "digits": lambda i: (f"Count from {i}.", " ".join(str(i + k) for k in range(9))),
        "words": lambda i: (f"Recite part {i}.", " ".join(words[12 * i : 12 * i + 12]) or "Nothing is left."),
        "code": lambda i: (f"Add {i} in code.", f"def add_{i}(x):\n    return x + {i}\n"),
        "shout": lambda i: (f"Shout {i}!", "A" * (i % 7 + 1) + " HA HA" * (i % 5 + 1)),
    }
    sources = []
    for name, make in kinds.items():
        lines = [dict(zip(("instruction", "output"), make(i), strict=True)) for i in range(40)]
        (folder / f"{name}.json").write_text(json.dumps(lines), encoding="utf-8")
        sources.append({"name": name, "at": {"kind": "files", "path": f"{name}.json"}})
    return sources


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix")
    names = ["digits", "words", "code", "shout"]
    sources = [{"name": name, "at": {"kind": "files", "path": f"{name}.json"}} for name in names]
    tune = {
        "steps": 7, "save_every": 2, "optimizer": {"lr": 1e-2},
        "mixture": {"method": "gate-load-robust", "every": 2, "probe": {"rows": 16, "deviations": 0.5}},
    }  # fmt: skip
    changes = {"data": {"chat": {"sources": sources}}, "stages": ["construct", "tune"], "tune": tune}
    path = project.make(folder, changes)
    chats(folder)
    project.prepare(path)
    return folder


class Stopped(Exception):
    """A kill at a chosen place."""


def tuned(folder, **changes):
    with contextlib.chdir(folder):
        out = project.run(folder / "config.yaml", "tune", "activation", **changes)
        return {name: files.sha256(out / name) for name in ("manifest.json", "model/model.safetensors")}


def series(folder):
    return metrics.series(folder / "results/activation/tune/work/metrics.jsonl")


def test_tuning_moves_the_weights_and_logs_what_it_saw(prepared, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(prepared, folder)
    tuned(folder)
    found = series(folder)
    weights = {name: dict(found[f"mixture/weight/{name}"]) for name in ("digits", "words", "code", "shout")}
    assert all(values[1] == 0.25 == values[2] for values in weights.values())
    assert len({values[3] for values in weights.values()}) == 4
    assert sum(values[7] for values in weights.values()) == pytest.approx(1.0)
    assert [step for step, _ in found["mixture/distance/code/digits"]] == [2, 4, 6]
    load = sum(found[f"mixture/load/code/expert_{e}"][-1][1] for e in range(4))
    assert load == pytest.approx(1.0)
    assert [step for step, _ in found["seconds/probe"]] == [2, 4, 6]
    assert {key.removeprefix("valid/loss/") for key in found if key.startswith("valid/loss/")} == set(weights)


@pytest.mark.parametrize("pieces", [3, 9, 24])
def test_resume_is_exact_in_the_middle_of_an_update(prepared, tmp_path, monkeypatch, pieces):
    """Stopped within the second update's probe, after so many of its batches: checkpoint at step 2, the update of step 4 is done anew."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    shutil.copytree(prepared, whole)
    shutil.copytree(prepared, broken)
    expected = tuned(whole)
    own, calls = probe.Reader.result, []

    def result(self):
        calls.append(None)
        if len(calls) == 16 + pieces:  # 4 datasets, 16 rows each, 4 in a batch: 16 batches to an update
            raise Stopped
        return own(self)

    monkeypatch.setattr(probe.Reader, "result", result)
    with pytest.raises(Stopped):
        tuned(broken)
    checkpoint = broken / f"results/activation/tune/work/checkpoints/step-0000000{2 if pieces <= 16 else 4}"
    waited = time.monotonic() + 20
    while not checkpoint.exists() and time.monotonic() < waited:
        time.sleep(0.01)  # it is written by a thread
    state = json.loads((checkpoint / "state.json").read_text())["mixture"]
    assert state["updates"] == (1 if pieces <= 16 else 2)
    assert len(state["gap"]) == 4
    monkeypatch.setattr(probe.Reader, "result", own)
    assert tuned(broken) == expected
    one, two = series(whole), series(broken)
    for key, values in one.items():
        if key.startswith(("mixture/", "train/loss", "valid/")):
            assert two[key] == values, key


@pytest.mark.parametrize("method", ["gate-load", "sentence-embedding", "ref-loss"])
def test_the_other_methods_run_in_the_same_stage(prepared, tmp_path, method):
    folder = tmp_path / "p"
    shutil.copytree(prepared, folder)
    mixture = {"method": method, "every": 2, "probe": {"rows": 8}, "weights": "uniform"}
    tuned(folder, tune={"mixture": mixture, "steps": 5})
    weights = {
        key: values[-1][1] for key, values in series(folder).items() if key.startswith("mixture/weight/")
    }
    assert len(set(weights.values())) == 4
    assert sum(weights.values()) == pytest.approx(1.0)


def test_a_budget_of_tokens_ends_the_stage_and_the_schedule(prepared, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(prepared, folder)
    tuned(
        folder,
        tune={"tokens": 900, "steps": 60, "mixture": {"method": "static"}, "optimizer": {"warmup": 2}},
    )
    found = series(folder)
    seen = [value for _, value in found["train/tokens"]]
    assert seen[-2] < 900 <= seen[-1]
    rates = dict(found["train/lr"])
    assert rates[len(seen)] < 0.25 * max(rates.values()), "the schedule was not at its end"
    assert rates[2] == pytest.approx(2 * rates[1]), (
        "a warm-up is so many steps, however far away their last one is"
    )
    done = json.loads((folder / "results/activation/tune/manifest.json").read_text())["metrics"]["steps"]
    assert done == len(seen) < 60
    assert "valid/loss/words" in found, "the last step is validated"
