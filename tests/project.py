"""A tiny but whole project for tests: a random LLaMA, a BPE tokenizer trained on real text, a corpus from Python's own files."""

import contextlib
import copy
import json
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import yaml
from tiny import tiny_llama

from moesaic import config
from moesaic.flow import paths
from moesaic.flow.step import STEPS, execute

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "model": {"at": {"kind": "folder", "path": "parent"}},
    "data": {
        "block": 64,
        "validation": 0.2,
        "domains": {
            "code": {
                "like": "github",
                "sources": [{"at": {"kind": "files", "path": "text/code"}, "max_characters": 3000}],
            },
            "prose": {
                "like": "books",
                "sources": [{"at": {"kind": "files", "path": "text/prose"}, "max_characters": 3000}],
            },
            "far": {
                "held_out": True,
                "sources": [{"at": {"kind": "files", "path": "text/far"}, "max_characters": 3000}],
            },
        },
        "max_train_tokens": 12000,
        "max_validation_tokens": 1500,
        "chat": {
            "max_tokens": 128,
            "validation": 0.2,
            "sources": [{"at": {"kind": "files", "path": "chat.json"}}],
        },
    },
    "experts": {
        "experts": 4,
        "per_token": 2,
        "shared": 32,
        "reconstruct": "least-squares",
        "calibration": {"tokens": 1024},
    },
    "pretrain": {"steps": 8, "batch": 4, "micro_batch": 2, "save_every": 2, "validation_batches": 1},
    "tune": {"steps": 4, "batch": 4, "micro_batch": 4, "save_every": 2, "validation_batches": 1},
    "distill": {"steps": 4, "batch": 4, "micro_batch": 4, "save_every": 2, "validation_batches": 1},
    "variants": {"activation": {}},
    "evaluate": {"tasks": [], "blocks": 4, "bootstrap": 100},
}


def make(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Lay out the project in a folder; returns its configuration file."""
    library = sorted(p for p in Path(sysconfig.get_paths()["stdlib"]).glob("*.py") if p.stat().st_size > 8000)
    parts = {"code": library[:12], "prose": library[40:52], "far": library[80:86]}
    for name, sources in parts.items():
        (folder / "text" / name).mkdir(parents=True)
        for path in sources:
            (folder / "text" / name / f"{path.stem}.txt").write_text(
                path.read_text(encoding="utf-8"), encoding="utf-8"
            )
    lines = [
        line.strip()
        for path in library[100:140]
        for line in path.read_text(encoding="utf-8").splitlines()
        if 30 < len(line.strip()) < 90
    ]
    chats = [
        {"instruction": a, "input": "", "output": b}
        for a, b in zip(lines[0:120:2], lines[1:121:2], strict=True)
    ]
    (folder / "chat.json").write_text(json.dumps(chats), encoding="utf-8")
    tokenizer(folder / "text").save_pretrained(folder / "parent")
    tiny_llama().save_pretrained(folder / "parent")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.merge(copy.deepcopy(CONFIG), changes or {})), encoding="utf-8")
    return path


def tokenizer(text: Path) -> Any:
    """A byte-level BPE of 512 tokens with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(p) for p in sorted(text.rglob("*.txt"))], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def run(path: Path, step: str, variant: str | None = None, stage: str | None = None, **changes: Any) -> Path:
    """Run one step of a project in this process (the working directory must be the project's); returns its folder."""
    plan = paths.plan_step(config.load(path, changes), step, variant, stage)
    execute(STEPS[step], plan.settings, plan.inputs, plan.out)
    return plan.out


def pretrain_command(threads: int = 1, *extra: str) -> list[str]:
    """The command that pre-trains the project's variant, to be run in its folder."""
    call = [sys.executable, "-m", "moesaic.cli", "pretrain", "--config", "config.yaml"]
    return [*call, "--variant", "activation", "--threads", str(threads), *extra]


def prepare(path: Path) -> None:
    """The shared steps and the construction, run in the project's folder."""
    with contextlib.chdir(path.parent):
        _prepare(path)


def _prepare(path: Path) -> None:
    for step in ("dense", "documents", "tokens", "chat", "tasks"):
        run(path, step)
    run(path, "construct", "activation")


def tokenizer_of_library() -> Any:
    """The same, trained on a few files of the standard library."""
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("a*.py")):
            (Path(folder) / f"{path.stem}.txt").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        return tokenizer(Path(folder))
