"""The commands that look at a finished run, one after the other in one process, and the exit codes that Snakemake's retries depend on."""

import errno
import json
import logging

import project
import pytest
import torch
from transformers import AutoModelForCausalLM

from moesaic import cli
from moesaic.errors import Interrupted
from moesaic.flow import launch, manifest, metrics
from moesaic.model import size
from moesaic.train import hardware

CHANGES = {
    "stages": ["construct", "pretrain"],
    "experts": {"family": "glm4_moe", "shared": 32, "experts": 4, "per_token": 2},
    "pretrain": {"steps": 3, "batch": 4, "micro_batch": 2, "router": {"balance": "bias"}, "balance": 0.0},
    "track": {"experiment": "commands"},
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """`main` sets up logging for a process of its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(hardware, "peak_flops", lambda device: 1e12)
        path = project.make(folder, CHANGES)
        project.prepare(path)
        project.run(path, "pretrain", "activation")
        project.run(path, "evaluate", stage="dense")
        project.run(path, "evaluate", "activation", "pretrain")
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def said(capsys, *words):
    """What a command prints."""
    cli.main([str(word) for word in words])
    return capsys.readouterr().out


def test_compare(folder, capsys):
    out = said(capsys, "compare", "results/activation/evaluate/pretrain", "results/dense/evaluate")
    head, *rows = out.splitlines()
    assert head.split() == ["task", "metric", "n", "difference", "95", "%"]
    (row,) = [line.split() for line in rows if line.startswith("text/code ")]
    values = [
        item["value"]
        for name in ("activation/evaluate/pretrain", "dense/evaluate")
        for item in json.loads((folder / "results" / name / "scores.json").read_text())
        if (item["task"], item["metric"]) == ("text/code", row[1])
    ]
    assert row[1] == "bits_per_byte"
    assert float(row[3]) == pytest.approx(values[0] - values[1], abs=1e-4)


def test_audit_merge_and_plan(folder, capsys, tmp_path):
    out = said(
        capsys, "audit", "results/activation/construct/model", "--blocks", 1, "--out", tmp_path / "audit.json"
    )
    found = json.loads((tmp_path / "audit.json").read_text())
    assert len(found["layers"]) == len([line for line in out.splitlines()[1:] if "GPUs" not in line]) == 3
    dense = said(
        capsys, "merge", "results/activation/construct/model", tmp_path / "dense",
        "--assignment", "results/activation/construct/assignment.parquet",
    )  # fmt: skip
    assert dense == ""
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")).__name__ == "LlamaForCausalLM"
    page = said(capsys, "plan", "config.yaml", "--gpus", 1)
    assert "variant activation: Glm4MoeForCausalLM" in page
    assert "  pretrain\n" in page


def test_sync_summary_and_export(folder, capsys, tmp_path, caplog):
    said(capsys, "sync", "--config", "config.yaml")
    assert (folder / "mlflow.db").exists()
    with pytest.raises(SystemExit) as ended:
        said(capsys, "summary")
    assert ended.value.code == 2, "there is no report yet"
    said(
        capsys,
        "export",
        tmp_path / "out",
        "--config",
        "config.yaml",
        "--variant",
        "activation",
        "--stage",
        "pretrain",
    )
    assert (tmp_path / "out/README.md").read_text().startswith("---\n")
    said(capsys, "schema", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text())["properties"]["pretrain"]


def test_bias_balancing_moves_against_the_load_of_a_real_training(folder):
    """Through loop, sums and policy: the bias of the saved model is what the logged loads say."""
    rate = manifest.read(folder / "results/activation/pretrain").settings["pretrain"]["router"]["bias_rate"]
    model, before = (
        AutoModelForCausalLM.from_pretrained(folder / f"results/activation/{stage}/model")
        for stage in ("pretrain", "construct")
    )
    for layer, first in zip(model.model.layers, before.model.layers, strict=True):
        moved = (layer.mlp.gate.e_score_correction_bias - first.mlp.gate.e_score_correction_bias) / rate
        assert torch.allclose(moved, moved.round(), atol=1e-3), "whole steps of the rate"
        assert 1 <= moved.abs().max() <= 3, "three optimizer steps"
        assert moved.min() < 0 < moved.max()


def test_utilisation_is_of_active_flops(folder):
    found = {
        key: dict(values)
        for key, values in metrics.series(folder / "results/activation/pretrain/work/metrics.jsonl").items()
    }
    model = AutoModelForCausalLM.from_pretrained(folder / "results/activation/construct/model")
    each = size.count(model).flops_per_token(training=True)
    assert len(found["train/mfu"]) == 3
    for step, value in found["train/mfu"].items():
        assert value == pytest.approx(each * found["train/tokens_per_second"][step] / 1e12)
    everything = 6 * sum(p.numel() for p in model.parameters())
    assert 0.3 * everything < each < 0.95 * everything, "routed experts that do not run do not count"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "big.bin"),
            2,
            "no room left on the disk for big.bin",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "big.bin"), 2, "no room left on the disk for big.bin"),
        (OSError(errno.EACCES, "Permission denied", "mine"), 2, "mine: permission denied; make it writable"),
        (OSError(errno.EIO, "Input/output error", "bad"), 1, "unexpected error"),
        (launch.RankFailed("rank 3 failed"), 1, "rank 3 failed"),
        (Interrupted("stopped after step 5"), 75, "stopped after step 5"),
        (RuntimeError("who knows"), 1, "RuntimeError: who knows"),
    ],
)
def test_exit_codes_and_the_log_file(folder, tmp_path, monkeypatch, error, code, words):
    def fails(*_):
        raise error

    monkeypatch.setattr(launch, "run", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main(["dense", "--config", "config.yaml", "--log", str(tmp_path / "log")])
    assert ended.value.code == code
    assert words in (tmp_path / "log").read_text(), "the log file has it too"
