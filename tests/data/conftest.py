"""A tiny tokenizer trained here, a dense step that holds it, and a way to run a step under the real contract."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moesaic.flow import manifest, step
from moesaic.flow.manifest import Manifest

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROSE = [
    "The river ran past the mill and the old stone bridge, and the miller counted the sacks of grain.",
    "In the following centuries the city became a centre of trade; its university is one of the oldest.",
    "Größe, naïve café, Москва, 東京 and 🙂 are words that take more than one byte a character.",
    "What is the capital of France? The capital of France is Paris. Two and two make four.",
    "def add(a, b):\n    return a + b\n",
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE with 600 ids, ChatML, <|im_end|> declared as end of sequence: SmolLM2-Instruct in small."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(PROSE * 3, trainer)
    names = {
        "eos_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    made.chat_template = CHATML
    return made


@pytest.fixture
def dense(tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write a finished dense step that holds a tokenizer (and no weights); returns its manifest."""

    def make(with_tokenizer: Any = None, vocabulary: int = 600, name: str = "dense") -> Path:
        folder = tmp_path / "results" / name
        (with_tokenizer or tokenizer).save_pretrained(folder / "model")
        (folder / "model" / "config.json").write_text('{"max_position_embeddings": 64}')
        manifest.write(folder, "dense", 1, {}, {}, ["model"], {"vocab_size": vocabulary})
        return folder / manifest.NAME

    return make


@pytest.fixture
def documents_step(tmp_path: Path) -> Callable[[Mapping[str, list[str]]], Path]:
    """Write a finished documents step with the same texts on both sides of each domain; returns its manifest."""

    def make(domains: Mapping[str, list[str]]) -> Path:
        folder = tmp_path / "results" / "made" / "documents"
        folder.mkdir(parents=True)
        for name, texts in domains.items():
            table = pa.table({"id": [f"{name}:{i}" for i in range(len(texts))], "text": texts})
            for split in ("train", "validation"):
                pq.write_table(table, folder / f"{name}.{split}.parquet", row_group_size=7)
        outputs = [path.name for path in folder.iterdir()]
        manifest.write(folder, "documents", 1, {}, {}, outputs, {})
        return folder / manifest.NAME

    return make


@pytest.fixture
def run_step(tmp_path: Path) -> Callable[..., Manifest]:
    """Run a step as the workflow does and read back its manifest."""

    def run(
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Path] | None = None,
        out: str | None = None,
    ) -> Manifest:
        folder = tmp_path / "results" / "prepare" / (out or name)
        step.execute(step.STEPS[name], settings, inputs or {}, folder)
        found = manifest.read(folder)
        manifest.verify(found)
        return found

    return run


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write records as JSON lines; returns the path as a string, as a configuration has it."""

    def write(name: str, rows: list[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package cache; no registry can be reached."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MOESAIC_CACHE", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    return folder


@pytest.fixture
def seed_wheel(cache: Path) -> Callable[[Mapping[str, bytes]], str]:
    """Put a wheel with these members into the cache; returns its SHA-256."""

    def seed(members: Mapping[str, bytes], name: str = "tiny-1.0-py3-none-any.whl") -> str:
        cache.mkdir(exist_ok=True)
        path = cache / name
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(zipfile.ZipInfo(member), data)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        folder = cache / "packages" / digest
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / name)
        return digest

    return seed
