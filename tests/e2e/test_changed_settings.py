"""A training that was begun with other settings: nothing of it is gone on from, and nothing of it is lost."""

from dataclasses import replace

import project
import pytest

from moesaic.errors import InputError, Interrupted
from moesaic.flow import files, metrics, signals
from moesaic.flow.step import STEPS
from moesaic.train import loop

OUT = "results/activation/pretrain"


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    path = project.make(tmp_path, {"pretrain": {"steps": 4, "save_every": 1}})
    project.prepare(path)
    monkeypatch.chdir(tmp_path)
    yield path
    signals.clear()


def stopped(path, step, monkeypatch, **changes):
    """Train until a step is done, as a time limit would."""
    done = []
    own = loop._step
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", lambda *args: done.append(1) or (len(done) == step and signals.request_stop()) or own(*args))  # fmt: skip
        with pytest.raises(Interrupted):
            project.run(path, "pretrain", "activation", **changes)
    signals.clear()


def test_checkpoints_of_other_settings_wait_and_come_back(prepared, monkeypatch, caplog):
    caplog.set_level("INFO")
    work = prepared.parent / OUT / "work"
    stopped(prepared, 2, monkeypatch)
    first = (work / "metrics.jsonl").read_bytes()
    stopped(prepared, 1, monkeypatch, pretrain={"optimizer": {"lr": 0.02}})
    assert "changed since the checkpoint at step 2, which is set aside" in caplog.text
    assert "going on from step" not in caplog.text, "not with weights of other settings"
    (aside,) = work.glob("checkpoints-*")
    assert [path.name for path in aside.glob("step-*")] == ["step-00000001", "step-00000002"]
    assert (aside / "metrics.jsonl").read_bytes() == first
    assert {item["step"] for item in metrics.read(work / "metrics.jsonl")} == {1}
    # another alarm or another curve is no reason to begin anew
    project.run(prepared, "pretrain", "activation", pretrain={"validate_every": 3})
    assert "going on from step 2" in caplog.text
    assert not list(work.glob("*checkpoints*"))
    assert {item["step"] for item in metrics.read(work / "metrics.jsonl")} == {1, 2, 3, 4}
    made = files.sha256(prepared.parent / OUT / "model/model.safetensors")
    (prepared.parent / OUT / "manifest.json").unlink()
    (work / "metrics.jsonl").unlink()
    project.run(prepared, "pretrain", "activation")
    assert files.sha256(prepared.parent / OUT / "model/model.safetensors") == made, "as never interrupted"


def test_a_checkpoint_of_another_version_of_the_step_is_not_gone_on_from(prepared, monkeypatch, caplog):
    """The first half would be made as before, and the manifest would name the new version."""
    caplog.set_level("INFO")
    stopped(prepared, 2, monkeypatch)
    raised = replace(STEPS["pretrain"], version=STEPS["pretrain"].version + 1)
    with monkeypatch.context() as patch:
        patch.setitem(STEPS, "pretrain", raised)
        stopped(prepared, 1, monkeypatch)
    assert "changed since the checkpoint at step 2, which is set aside" in caplog.text
    assert "going on from step" not in caplog.text


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_saved(prepared, monkeypatch):
    own, done = loop._step, []

    def diverges(*args):
        values, tokens, samples = own(*args)
        done.append(1)
        return values | ({"train/loss": float("nan")} if len(done) == 3 else {}), tokens, samples

    monkeypatch.setattr(loop, "_step", diverges)
    with pytest.raises(
        InputError, match=r"not finite at step 3 .*optimizer\.lr, with which training begins anew"
    ):
        project.run(prepared, "pretrain", "activation")
    assert [path.name for path in sorted((prepared.parent / OUT / "work/checkpoints").glob("step-*"))] == ["step-00000001", "step-00000002"]  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "ranks", "refused"), [(8, 1, False), (8, 2, False), (8, 3, True), (6, 2, True)]
)
def test_a_batch_that_the_ranks_cannot_share_is_refused(batch, ranks, refused):
    settings = {"batch": batch, "micro_batch": 2}
    if not refused:
        loop._check_batch(settings, ranks)
        return
    with pytest.raises(
        InputError, match=f"{batch} sequences do not divide by {ranks} ranks times micro_batch 2"
    ):
        loop._check_batch(settings, ranks)
