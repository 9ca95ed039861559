"""Bad input ends with one line that names the key or the file; nothing made before is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import project
import pytest
from tiny import tiny_llama

from moesaic.errors import InputError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    path = project.make(folder)
    project.prepare(path)
    return folder


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    folder = tmp_path / "p"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder / "config.yaml"


def test_missing_model(here):
    with pytest.raises(InputError, match=r"model\.at\.path: nowhere does not exist"):
        project.run(here, "dense", model={"at": {"kind": "folder", "path": "nowhere"}})


def test_tokenizer_of_another_model(here):
    tiny_llama(vocab_size=300).save_pretrained("parent")
    with pytest.raises(InputError, match="tokenizer does not belong to the model"):
        project.run(here, "dense")


def test_empty_domain(here):
    Path("text/empty").mkdir()
    Path("text/empty/a.txt").write_text("too short")
    with pytest.raises(InputError, match=r"data\.domains\.void: empty.*too_short"):
        project.run(
            here,
            "documents",
            data={"domains": {"void": {"sources": [{"at": {"kind": "files", "path": "text/empty"}}]}}},
        )


def test_truncated_shard_is_named_and_a_rerun_mends_it(here):
    shard = Path("results/prepare/tokens/code.train.arrow")
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"code\.train\.arrow: damaged.*delete .*manifest\.json"):
        project.run(here, "pretrain", "activation")
    Path("results/prepare/tokens/manifest.json").unlink()
    project.run(here, "tokens")
    project.run(here, "pretrain", "activation")


def test_damaged_weights(here):
    weights = Path("results/activation/construct/model/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-5] ^= 255
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged, its SHA-256"):
        project.run(here, "pretrain", "activation")


def test_damaged_items_of_the_parent(here):
    items = project.run(here, "evaluate", stage="dense") / "items.parquet"
    data = bytearray(items.read_bytes())
    data[100] ^= 255
    items.write_bytes(data)
    with pytest.raises(
        InputError, match=r"items\.parquet: damaged, its SHA-256.*run the evaluate step again"
    ):
        project.run(here, "evaluate", "activation", "construct")


def test_not_finite_loss_keeps_the_checkpoints(here):
    optimizer = {"lr": 1e30, "clip": 1e30, "warmup": 0}
    with pytest.raises(InputError, match=r"loss is not finite at step \d.*optimizer\.lr"):
        project.run(here, "pretrain", "activation", pretrain={"optimizer": optimizer, "save_every": 1})
    assert not Path("results/activation/pretrain/manifest.json").exists()
    project.run(here, "pretrain", "activation")


def test_teacher_of_another_vocabulary(here):
    from moesaic.distill import students

    with pytest.raises(
        InputError, match=r"distill\.teacher: its vocabulary has 300 tokens, the student's 512"
    ):
        students.check_teacher(tiny_llama(vocab_size=300), tiny_llama())


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"per_token": 3}, "per_token: 3 is more than"),
        ({"per_token": None, "drop_layers": [7]}, "drop_layers"),
        ({"per_token": 1, "of": "dense"}, "no experts"),
    ],
)
def test_impossible_students(here, student, message):
    if not Path("results/activation/tune/manifest.json").exists():
        project.run(here, "pretrain", "activation")
        project.run(here, "tune", "activation")
    with pytest.raises(InputError, match=message):
        project.run(here, "distill", "activation", distill={"student": student})


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (128, r"too short for the statistics; take at least \d+"),
        (10**6, r"take \d+ blocks of each domain, \w+ has \d+"),
    ],
)
def test_calibration_text_too_short_or_too_long(here, tokens, message):
    with pytest.raises(InputError, match=r"experts\.calibration\.tokens: .*" + message):
        project.run(here, "construct", "activation", experts={"calibration": {"tokens": tokens}})


def test_experts_that_do_not_divide(here):
    with pytest.raises(InputError, match=r"experts\.experts: 7 experts do not divide"):
        project.run(here, "construct", "activation", experts={"experts": 7})


def test_no_upstream(here):
    shutil.rmtree("results/prepare/tokens")
    with pytest.raises(InputError, match=r"results/prepare/tokens/manifest\.json: not there"):
        project.run(here, "construct", "activation")


def test_the_command_prints_one_line_and_no_traceback(here):
    command = [
        sys.executable,
        "-m",
        "moesaic.cli",
        "construct",
        "--config",
        "config.yaml",
        "--variant",
        "activation",
        "--set",
        "experts.experts=7",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "experts.experts" in errors[0]
