"""The offline teacher: what the cache keeps, that training on it is training on the teacher, that it is reused and goes on after a kill."""

import copy
import shutil

import numpy as np
import project
import pyarrow.parquet as pq
import pytest
import torch
from offline import cached
from tiny import tiny_llama, tiny_moe

from moesaic import config
from moesaic.distill import cache, teachers, truncation
from moesaic.distill.losses import METHODS, OPTIONS, Text
from moesaic.errors import InputError
from moesaic.flow import files, manifest, metrics, paths, shared, signals
from moesaic.flow.step import STEPS, execute
from moesaic.model import families
from moesaic.train.objectives import IGNORE, Batch, Trainee, Weights

OFFLINE = {"top": 64, "tail": 16, "shard_rows": 8, "max_rows": 20, "batch": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a constructed MoE; distillation straight from it on chat, pre-training beside the dense parent."""
    folder = tmp_path_factory.mktemp("offline")
    changes = {
        "stages": ["construct", "pretrain", "distill"],
        "pretrain": {"steps": 2, "teacher": "dense"},
        "distill": {"steps": 2},
        "variants": {"activation": {}, "other": {}},
    }
    path = project.make(folder, changes)
    project.prepare(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project.run(path, "pretrain", "activation")
    return path


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made.parent)
    return made


def losses(folder):
    return metrics.series(folder / "work" / metrics.NAME)


def distribution(seed=0, rows=400, vocabulary=300, spread=2.0):
    draw = torch.Generator().manual_seed(seed)
    log_p = (spread * torch.randn(rows, vocabulary, generator=draw)).log_softmax(1)
    log_q = (log_p + 0.7 * torch.randn(rows, vocabulary, generator=draw)).log_softmax(1)
    return log_q, log_p


def test_what_is_kept_adds_up():
    _, log_p = distribution()
    ids, kept, rest = truncation.truncate(log_p, 10, 5, torch.Generator().manual_seed(0))
    assert ids.shape == kept.shape == (400, 15)
    torch.testing.assert_close(kept, log_p.gather(1, ids))
    torch.testing.assert_close(kept[:, :10].exp().sum(1) + rest.exp(), torch.ones(400))
    assert (kept[:, :9] >= kept[:, 1:10]).all()
    assert all(not set(row[:10]) & set(row[10:]) for row in ids.tolist()), "the tail is drawn from the others"


@pytest.mark.parametrize("name", ["kd", "rkl", "jsd", "skl", "srkl", "cald", "abkd", "akl"])
def test_losses_from_a_sampled_tail_are_right_on_average_and_from_one_bucket_too_small(name):
    """Over many positions; the exact value is that of all probabilities."""
    log_q, log_p = distribution(rows=4000)
    nll = torch.ones(4000)

    def from_cache(tail, seed=0):
        kept = truncation.truncate(log_p, 16, tail, torch.Generator().manual_seed(seed))
        said = teachers.Cached(*kept, -nll, tail, 1.0)
        seen = said.compare(log_q, slice(None), 1.0)
        text = Text(nll, nll, rest=seen.rest, weight_NS=seen.weight_NS)
        return float(METHODS[name].loss(seen.log_q_NC, seen.log_p_NC, text, OPTIONS).mean())

    exact = float(METHODS[name].loss(log_q, log_p, Text(nll, nll), OPTIONS).mean())
    bucket, sampled = from_cache(0), np.mean([from_cache(16, seed) for seed in range(3)])
    if name not in ("abkd", "akl"):  # those two are no f-divergences: no bound for a bucket
        assert bucket < 0.97 * exact
    # the weights of akl are themselves estimated, and reverse divergences look at tokens that the teacher rarely draws
    assert sampled == pytest.approx(exact, rel=0.03 if name in ("akl", "rkl") else 0.01)


def test_everything_cached_is_the_resident_teacher(llama):
    """With all but a few tokens kept, loss and gradient are those of the teacher itself."""
    teacher = tiny_llama(seed=5)
    ids = torch.randint(3, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORE)], dim=1)
    batch = Batch(ids, targets, None, ["a", "b"], 30, 1.0)
    found = []
    for given, own in (
        (batch, teacher),
        (cached(teacher, batch, 505, 0), None),
        (cached(teacher, batch, 440, 64), None),
    ):
        trainee = Trainee(copy.deepcopy(llama), Weights(kl=0.7), own)
        loss, statistics = trainee(given)
        loss.backward()
        grad = trainee.model.model.layers[0].mlp.up_proj.weight.grad
        found.append((float(loss.detach()), statistics["distill_B"], grad))
    for (loss, per_row, grad), near in zip(found[1:], (1e-3, 1e-2), strict=True):
        assert loss == pytest.approx(found[0][0], rel=near)
        torch.testing.assert_close(per_row, found[0][1], rtol=2 * near, atol=near)
        assert float((grad - found[0][2]).norm() / found[0][2].norm()) < 15 * near


def test_training_on_the_cache_is_training_on_the_teacher(here):
    """k = 64 of 512: the training loss stays within 1 % of the resident teacher's, step by step on the same rows."""
    own = {
        "stages": ["construct", "distill"],
        "distill": {"steps": 6, "batch": 12, "offline": {"top": 64, "tail": 16}},
    }
    out = project.run(here, "teacher", "activation", "distill", **own)
    assert out == shared.teacher_folder(config.load(here, own), "activation", "distill")
    made = manifest.read(out)
    truncation = made.metrics["truncation"]
    assert abs(truncation["relative_error"]) < 0.25, "two short rows, and a flat teacher"
    assert 0 < truncation["rest"] < 1
    assert made.metrics["bytes_per_token"] == 80 * 4 + 4
    offline = losses(project.run(here, "distill", "activation", **own))
    resident_settings = config.merge(own, {"distill": {"offline": None}})
    resident = losses(project.run(here, "distill", "activation", **resident_settings))
    assert offline["mixture/drawn/chat"] == resident["mixture/drawn/chat"]
    for (_, a), (_, b) in zip(offline["train/loss/distill"], resident["train/loss/distill"], strict=True):
        assert a == pytest.approx(b, rel=0.03)
    means = [np.mean([value for _, value in run["train/loss"]]) for run in (offline, resident)]
    assert means[0] == pytest.approx(means[1], rel=0.01)
    # held-out telemetry beside both teachers
    for key, near in (("forward_kl", 0.08), ("reverse_kl", 0.4), ("entropy", 0.01)):
        a, b = (run[f"valid/{key}/chat"][-1][1] for run in (offline, resident))
        assert a > 0
        assert a == pytest.approx(b, rel=near), key


def test_the_cache_is_reused_when_only_the_loss_changes(here):
    """Same folder for another loss, student or number of steps; another one for another k, temperature or teacher. The dense parent's is shared."""

    def folder(variant="activation", stage="distill", **changes):
        own = {"stages": ["construct", "distill"], "distill": {"offline": {"top": 32, "tail": 0}}}
        return shared.teacher_folder(config.load(here, config.merge(own, changes)), variant, stage)

    first = folder()
    for same in (
        {"loss": "jsd"},
        {"student": {"per_token": 2}},
        {"steps": 99},
        {"losses": {"jsd": {"beta": 0.2}}},
    ):
        assert folder(distill=same) == first
    for other in ({"offline": {"top": 33}}, {"temperature": 2.0}, {"data": "text"}, {"teacher": "dense"}):
        assert folder(distill=other) != first
    assert folder("other") != first
    assert folder("other", distill={"teacher": "dense"}) == folder("activation", distill={"teacher": "dense"})
    # and the DAG knows it
    loaded = config.load(
        here, {"stages": ["construct", "distill"], "distill": {"offline": {"top": 32}, "teacher": "dense"}}
    )
    plan = paths.plan_step(loaded, "distill", "other")
    assert "dense" not in plan.inputs, "the teacher itself is not read"
    assert list(shared.caches(loaded)) == [("dense", plan.inputs["teacher"].parent.name)]


def test_a_killed_teacher_goes_on_and_loses_nothing(here, monkeypatch):
    """Killed after the third shard, with a half-written file beside: the rest is made, the result has the same bytes."""
    own = {"stages": ["construct", "distill"], "distill": {"offline": OFFLINE}}
    out = project.run(here, "teacher", "activation", "distill", **own)
    before = manifest.read(out)
    names = sorted(path.name for path in (out / cache.FOLDER).iterdir())
    assert len(names) == 3 + 2  # 20 of 48 training conversations, 12 for validation
    shutil.rmtree(out)
    written = []
    write = cache.write

    def dying(path, *rest):
        if len(written) == 3:
            path.with_name("." + path.name + ".tmp-elsewhere-1").write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, *rest)
        written.append(path.name)

    monkeypatch.setattr(cache, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        project.run(here, "teacher", "activation", "distill", **own)
    assert not (out / "manifest.json").exists()
    monkeypatch.setattr(cache, "write", lambda path, *rest: (written.append(path.name), write(path, *rest)))
    project.run(here, "teacher", "activation", "distill", **own)
    assert sorted(written) == names, "a shard was made twice or not at all"
    assert manifest.read(out) == before
    rows = pq.read_table(out / cache.FOLDER, columns=["row"])["row"].to_pylist()
    assert len(rows) == sum(sum(count.values()) for count in before.metrics["rows"].values())


def test_stopped_by_a_signal_it_keeps_its_shards(here):
    own = {"stages": ["construct", "distill"], "distill": {"offline": OFFLINE | {"top": 20}}}
    plan = paths.plan_step(config.load(here, own), "teacher", "activation", "distill")
    signals.request_stop()
    try:
        with pytest.raises(Exception, match="finished shards are kept"):
            execute(STEPS["teacher"], plan.settings, plan.inputs, plan.out)
    finally:
        signals.clear()


def test_other_settings_clear_the_shards_and_wrong_rows_are_refused(here):
    own = {"stages": ["construct", "distill"], "distill": {"offline": OFFLINE | {"top": 24}}}
    out = project.run(here, "teacher", "activation", "distill", **own)
    read = cache.Cache(manifest.read(out))
    data = manifest.read("results/prepare/chat")
    from moesaic.data.sampler import Sample
    from moesaic.train.streams import ChatStream, TaughtStream

    taught = TaughtStream(ChatStream(data, "train"), read, "train")
    assert taught.sizes == {"chat": 20}, "only rows that the cache has are trained on"
    row = taught.rows([Sample("chat", 13)])[0]
    said = row.taught()
    assert said.ids.shape == (int((row.targets != IGNORE).sum()), 24 + 16)
    with pytest.raises(
        InputError,
        match=r"made from another row 13 of chat \(train\); delete .*manifest.json and run the teacher step again",
    ):
        read.reader("train", Sample("chat", 13), row.ids + 1, row.targets)()
    shard = out / cache.FOLDER / cache.shard_name("train", 0, 1)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged"):
        cache.Cache(manifest.read(out))


def test_pretraining_beside_an_offline_dense_parent(here):
    own = {"pretrain": {"offline": {"top": 64, "max_rows": 12}}}
    for variant in ("activation", "other"):
        out = paths.plan_step(config.load(here, own), "teacher", variant, "pretrain").out
        assert out.parts[1] == "dense"
    project.run(here, "teacher", "activation", "pretrain", **own)
    offline = losses(project.run(here, "pretrain", "activation", **own))
    resident = losses(project.run(here, "pretrain", "activation", pretrain={"offline": None}))
    assert offline["train/loss/distill"][0][1] > 0
    assert set(offline) == set(resident)


def test_more_tokens_than_the_vocabulary_has_are_refused(here):
    own = {"stages": ["construct", "distill"], "distill": {"offline": {"top": 500, "tail": 12}}}
    with pytest.raises(InputError, match=r"offline\.top: 500 and tail 12 of a vocabulary of 512"):
        project.run(here, "teacher", "activation", "distill", **own)
    with pytest.raises(InputError, match="dpkd-token needs the teacher's probability of any token"):
        config.load(here, {"distill": {"offline": {"top": 8}, "loss": "dpkd-token"}})
    with pytest.raises(InputError, match="with an offline teacher: none is configured"):
        paths.plan_step(config.load(here), "teacher", "activation", "tune")


# ---------------------------------------------------------------- resident MoE teachers


def batch_of(seed=0):
    ids = torch.randint(3, 512, (2, 16), generator=torch.Generator().manual_seed(seed))
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORE)], dim=1)
    return Batch(ids, targets, None, ["a", "a"], 30, 1.0, seed=seed)


def hidden(model, batch, **kwargs):
    return teachers.Teacher(copy.deepcopy(model), **kwargs).hidden(batch)


def test_a_teacher_with_all_experts_is_the_dense_parent_when_its_parts_weigh_the_same(tmp_path):
    """Unit scores: the parts of a split FFN add up to it. The weight of each is kept on the way from 2 of 4 experts to all."""
    dense = tiny_llama()
    moe = tiny_moe(tmp_path, dense, scale="unit").model
    batch = batch_of()
    expected = dense.base_model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    torch.testing.assert_close(hidden(moe, batch, experts="all"), expected, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(hidden(moe, batch, experts="all", scale="sum"), expected, atol=0.05)
    assert not torch.allclose(hidden(moe, batch), expected, atol=0.05)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_sampled_experts_follow_the_router_and_the_seed(tmp_path, scores):
    more = {"family": "glm4_moe", "shared": 32, "experts": 4} if scores == "sigmoid" else {}
    moe = tiny_moe(tmp_path, **more).model
    one, two, other = (hidden(moe, batch_of(seed), experts="sampled") for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other)
    # routers that are sure draw what they would choose
    for part in families.parts(moe):
        part.router.weight.data *= 1000
    if scores == "softmax":
        torch.testing.assert_close(
            hidden(moe, batch_of(), experts="sampled"), hidden(moe, batch_of()), atol=1e-4, rtol=1e-4
        )
    with pytest.raises(InputError, match="this one is dense"):
        teachers.Teacher(tiny_llama(), "all")


def test_no_file_is_left_half(here):
    assert not [path for path in files.Path("results").rglob(".*.tmp-*") if "elsewhere" not in path.name]
