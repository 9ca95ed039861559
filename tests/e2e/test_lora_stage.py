"""Tuning by LoRA as a stage: killed and gone on with, folded into a standard model that the next stage starts from."""

import contextlib
import shutil
from pathlib import Path

import killing
import project
import pytest
import torch

from moesaic.flow import files, manifest, metrics
from moesaic.model import families, load

pytestmark = pytest.mark.slow
OUT = Path("results/activation/tune")
CHANGES = {
    "data": {"chat": {"max_tokens": 200}},
    "stages": ["construct", "tune", "distill"],
    "tune": {
        "steps": 8, "batch": 4, "micro_batch": 4, "save_every": 2, "optimizer": {"lr": 5e-3, "warmup": 1},
        "adapter": {"method": "lora", "rank": 4, "expert_rank": 2},
    },
    "distill": {"steps": 2, "batch": 4, "micro_batch": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    path = project.make(folder, CHANGES)
    project.prepare(path)
    return folder


def test_killed_twice_equals_uninterrupted(prepared, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        shutil.copytree(prepared, folder)
    call = killing.command("tune")
    killing.finish(whole, call, 600)
    for moment in (3, 6):
        killing.killed(broken, call, lambda at=moment: killing.came_to(broken / OUT, at), 180)
    assert "going on from step" in killing.finish(broken, call, 600)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert files.sha256(whole / OUT / name) == files.sha256(broken / OUT / name), name
    one, two = (metrics.series(folder / OUT / "work/metrics.jsonl") for folder in (whole, broken))
    assert one["train/loss"] == two["train/loss"]
    assert one["train/loss"][-1][1] < one["train/loss"][0][1]


def test_the_result_is_a_standard_model_and_stages_go_on(prepared, tmp_path):
    from peft import PeftModel

    shutil.copytree(prepared, tmp_path / "p")
    with contextlib.chdir(tmp_path / "p"):
        out = project.run(Path("config.yaml"), "tune", "activation")
        facts = manifest.read(out).metrics["adapter"]
        assert (facts["method"], facts["rank"], facts["expert_rank"]) == ("lora", 4, 2)
        assert facts["merged"]
        before, after = (
            load.load_model(folder / "model").eval() for folder in (out.parent / "construct", out)
        )
        assert list(before.state_dict()) == list(after.state_dict())
        changed = {
            name.split(".", 3)[-1]
            for name, value in after.state_dict().items()
            if not torch.equal(value, before.state_dict()[name])
        }
        assert any("experts" in name for name in changed)
        assert all("proj" in name for name in changed), "attention and experts alone"
        ids = torch.arange(5, 25).view(1, -1)
        tuned = PeftModel.from_pretrained(before, str(out / "adapter"))
        with torch.no_grad():
            torch.testing.assert_close(tuned(ids).logits, after(ids).logits, rtol=1e-4, atol=1e-4)
        assert families.is_moe(after)
        project.run(Path("config.yaml"), "evaluate", None, "dense")
        project.run(Path("config.yaml"), "evaluate", "activation", "tune")
        assert manifest.read(project.run(Path("config.yaml"), "distill", "activation")).metrics["steps"] == 2


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"method": "shared-linear", "expert_rank": 2}, "expert_rank: shared-linear is for attention alone"),
        ({"method": "lora", "budget": 100}, "lora: has neither a budget"),
    ],
)
def test_what_does_not_fit_is_refused(adapter, message):
    from pydantic import ValidationError

    from moesaic.schema import Tune

    with pytest.raises(ValidationError, match=message):
        Tune(adapter=adapter, optimizer={"weight_decay": 0.0})


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    import sys

    from tiny import tiny_llama

    from moesaic.errors import InputError
    from moesaic.model.adapters import lora

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[lora\]'"):
        lora.attach(tiny_llama(), 4, 8.0, ("q_proj",), None)
