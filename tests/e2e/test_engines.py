"""DeepSpeed ZeRO and FSDP2 on CPU ranks (gloo): the losses of plain torch, and checkpoints that another number of ranks takes up."""

import importlib.util
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import project
import pytest
import torch
import yaml

from moesaic import config
from moesaic.flow import metrics
from moesaic.model import load

STEPS = 20
ROOT = Path(__file__).parents[2]
OUT = Path("results/activation/pretrain")
pytestmark = [pytest.mark.slow, pytest.mark.deepspeed]

if importlib.util.find_spec("deepspeed") is None or not (shutil.which("g++") or shutil.which("c++")):
    pytest.skip("needs DeepSpeed and a C++ compiler", allow_module_level=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    own = {"steps": STEPS, "batch": 8, "micro_batch": 2, "save_every": 5, "optimizer": {"lr": 1e-3}}
    project.prepare(project.make(folder, {"pretrain": own}))
    return folder


def start(folder, ranks):
    command = project.pretrain_command(ranks, "--ranks-per-node", str(ranks))
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


def copy(prepared, folder, engine):
    shutil.copytree(prepared, folder)
    path = folder / "config.yaml"
    changes = {"pretrain": {"engine": {"gradient_checkpointing": engine.endswith("+")}}}
    if engine.startswith("zero"):
        template = str(ROOT / "config" / "deepspeed" / f"{engine.rstrip('+')}.json")
        changes["pretrain"]["engine"] |= {"kind": "deepspeed", "deepspeed": template}
    if engine == "fsdp":
        changes["pretrain"]["engine"]["kind"] = "fsdp"
    path.write_text(yaml.safe_dump(config.merge(yaml.safe_load(path.read_text()), changes)))
    return folder


def losses(folder, ranks):
    process = start(folder, ranks)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-4000:]
    return dict(metrics.series(folder / OUT / "work/metrics.jsonl")["train/loss"])


@pytest.fixture(scope="module")
def plain(prepared, tmp_path_factory):
    return losses(copy(prepared, tmp_path_factory.mktemp("plain") / "p", "torch"), 2)


@pytest.mark.parametrize("engine", ["zero1", "zero3", "zero2+", "zero2-offload", "zero3-offload", "fsdp"])
def test_the_losses_of_plain_torch(prepared, plain, tmp_path, engine):
    folder = copy(prepared, tmp_path / "p", engine)
    found = losses(folder, 2)
    assert len(found) == STEPS
    assert found == pytest.approx(plain, rel=1e-4)
    assert plain[STEPS] < 0.98 * plain[1], "nothing was learnt, so nothing was compared"
    from transformers import AutoModelForCausalLM

    _, info = AutoModelForCausalLM.from_pretrained(folder / OUT / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("stage", [1, 3])
def test_bfloat16_on_the_way_leaves_no_trace(prepared, tmp_path, stage):
    """What "auto" becomes on a GPU: DeepSpeed casts the module, the result is float32 all the same, and what is frozen is not touched."""
    folder = copy(prepared, tmp_path / "p", f"zero{stage}")
    template = json.loads((ROOT / f"config/deepspeed/zero{stage}.json").read_text())
    (folder / "bf16.json").write_text(json.dumps(template | {"bf16": {"enabled": True}}))
    path = folder / "config.yaml"
    own = {
        "steps": 3,
        "optimizer": {"freeze_embeddings": True},
        "engine": {"kind": "deepspeed", "deepspeed": "bf16.json"},
    }
    path.write_text(yaml.safe_dump(config.merge(yaml.safe_load(path.read_text()), {"pretrain": own})))
    losses(folder, 2)
    before, after = (load.load_model(folder / name / "model") for name in (OUT.with_name("construct"), OUT))
    assert after.dtype == torch.float32
    name = "model.embed_tokens.weight"
    assert torch.equal(before.state_dict()[name], after.state_dict()[name])
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize(
    ("engine", "ranks", "later"),
    [
        ("zero2", 1, "zero2"),
        ("zero2", 4, "zero2"),
        ("zero3", 1, "zero1"),
        ("fsdp", 1, "torch"),
        ("torch", 2, "fsdp"),
    ],
)
def test_a_checkpoint_goes_on_with_other_ranks_and_engines(prepared, plain, tmp_path, engine, ranks, later):
    folder = copy(prepared, tmp_path / "p", engine)
    process = start(folder, 2)
    checkpoints = folder / OUT / "work/checkpoints"
    deadline = time.monotonic() + 300
    while (
        not (checkpoints / "step-00000010").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors[-3000:]
    path = folder / "config.yaml"
    found = yaml.safe_load(path.read_text())
    found["pretrain"]["engine"] |= (
        {"deepspeed": str(ROOT / "config" / "deepspeed" / f"{later}.json")}
        if later.startswith("zero")
        else {"kind": later}
    )
    path.write_text(yaml.safe_dump(found))
    process = start(folder, ranks)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-4000:]
    assert "going on from step 1" in errors
    assert dict(metrics.series(folder / OUT / "work/metrics.jsonl")["train/loss"]) == pytest.approx(
        plain, rel=1e-4
    )
