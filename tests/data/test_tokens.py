"""Tokens and packing: nothing lost, every block in place, byte counts true, and broken files refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moesaic.data import lengths, packed, tokens
from moesaic.data.split import SPLITS
from moesaic.errors import InputError

TEXTS = [
    "The river ran past the mill and the old stone bridge.",
    "Größe, naïve café, Москва, 東京 and 🙂🙂 take more bytes: e\u0301.",
    "def add(a, b):\n    return a + b\n",
    "This text spells <|endoftext|> and <|im_end|> out.",
    "x",
]
"""The fourth has special tokens as text, the second characters that the tokenizer was not trained on (U+0301)."""


@pytest.fixture
def encoder(tokenizer):
    return lengths.Encoder(tokenizer)


def write_documents(path: Path, texts: list[str], group: int = 3) -> Path:
    table = pa.table({"id": [str(i) for i in range(len(texts))], "text": texts})
    pq.write_table(table, path, row_group_size=group)
    return path


def pack(tmp_path, encoder, texts, block=16, limit=None) -> tuple[packed.PackedBlocks, tokens.Stats]:
    source = write_documents(tmp_path / "d.parquet", texts)
    stats = tokens.pack_file(source, tmp_path / "d.arrow", encoder, 0, block, limit)
    return packed.PackedBlocks(tmp_path / "d.arrow"), stats


def everything(blocks: packed.PackedBlocks) -> np.ndarray:
    return blocks.tokens(range(len(blocks))).reshape(-1)


def test_tokens_decode_to_the_text_and_end_with_the_end_of_document(encoder, tokenizer):
    ids, sizes, counts = encoder.encode(TEXTS, 0)
    ends = np.cumsum(counts)
    for text, stop, count in zip(TEXTS, ends, counts, strict=True):
        document = ids[stop - count : stop]
        assert tokenizer.decode(document[:-1]) == text
        assert document[-1] == 0
        assert 0 not in document[:-1], "a special token spelled out in a text is text"
        assert sizes[stop - count : stop].sum() == len(text.encode())
        assert sizes[stop - 1] == 0


def test_byte_lengths_are_those_of_every_single_token(encoder, tokenizer):
    text = TEXTS[1]
    ids, sizes, _ = encoder.encode([text], 0)
    assert len(ids) > len(text) / 4
    upto = [len(tokenizer.decode(ids[:i]).replace("\ufffd", "").encode()) for i in range(len(ids))]
    whole = [i for i in range(len(ids)) if "\ufffd" not in tokenizer.decode(ids[:i])]
    assert [int(sizes[:i].sum()) for i in whole] == [upto[i] for i in whole]


@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_bytes_sum_to_the_text_whatever_it_is(texts):
    backend = _sentencepiece_like()
    for texts_encoder in (_wrap(backend), _wrap(_with_nfc())):
        _, sizes, counts = texts_encoder.encode(texts, 1)
        ends = np.cumsum(counts)
        assert [int(sizes[e - c : e].sum()) for e, c in zip(ends, counts, strict=True)] == [
            len(t.encode()) if c > 1 else 0 for t, c in zip(texts, counts, strict=True)
        ]
        assert (sizes >= 0).all()


def _wrap(backend: Tokenizer) -> lengths.Encoder:
    return lengths.Encoder(type("Fast", (), {"is_fast": True, "backend_tokenizer": backend})())


def _sentencepiece_like() -> Tokenizer:
    """Metaspace with a dummy prefix and byte fallback, as in Llama 2 and Mistral."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    special = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS[:1] * 2, trainer)
    return backend


def _with_nfc() -> Tokenizer:
    """Byte level behind a normaliser that changes the text, as in Qwen."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def test_blocks_are_the_concatenated_documents(tmp_path, encoder):
    texts = TEXTS * 5
    blocks, stats = pack(tmp_path, encoder, texts)
    ids, sizes, counts = encoder.encode(texts, 0)
    kept = len(blocks) * 16
    assert np.array_equal(everything(blocks), ids[:kept])
    assert len(blocks) == len(ids) // 16 == stats.blocks
    assert stats.tokens_in == len(ids) == stats.tokens_in_blocks + stats.tokens_dropped_remainder
    assert stats.tokens_dropped_remainder == len(ids) % 16
    assert stats.text_bytes == sum(len(t.encode()) for t in texts)
    by_block = sizes[:kept].reshape(-1, 16)
    assert np.array_equal(blocks.bytes(range(len(blocks))), by_block[:, 1:].sum(axis=1))
    assert stats.predicted_bytes == by_block[:, 1:].sum()
    true = np.cumsum(counts) - counts
    found = np.concatenate([blocks.starts(i) + 16 * i for i in range(len(blocks))])
    assert np.array_equal(found, true[true < kept])


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(2, 9), st.integers(1, 4), st.integers(1, 7))
def test_packing_keeps_every_token_in_order(sizes, block, batch, calls):
    """Any documents, any block, fed in any number of calls: the blocks are the stream, cut."""
    stream = np.arange(sum(sizes), dtype=np.int32)
    counts = np.array(sizes, np.int64)
    packer = tokens.Packer(block, batch)
    out = []
    for part in np.array_split(np.arange(len(sizes)), calls):
        start, stop = (
            (int(counts[: part[0]].sum()), int(counts[: part[-1] + 1].sum())) if len(part) else (0, 0)
        )
        piece = stream[start:stop]
        out += list(packer.add(piece, piece % 5, counts[part]))
    assert all(len(full.bytes) == batch for full in out)
    out += list(packer.rest())
    packed_tokens = np.concatenate([full.tokens.reshape(-1) for full in out]) if out else stream[:0]
    assert np.array_equal(packed_tokens, stream[: len(stream) // block * block])
    starts = set(np.cumsum(counts) - counts)
    first = 0
    for full in out:
        per_block = np.split(full.starts, np.cumsum(full.starts_per_block)[:-1])
        for row, positions, size in zip(full.tokens, per_block, full.bytes, strict=True):
            assert {first + int(p) for p in positions} == {s for s in starts if first <= s < first + block}
            assert size == (row[1:] % 5).sum()
            first += block


def test_batching_does_not_change_the_result(tmp_path, encoder, monkeypatch):
    texts = TEXTS * 20
    whole, _ = pack(tmp_path, encoder, texts)
    expected = everything(whole)
    monkeypatch.setattr(tokens, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(packed, "BATCH", 4)
    again, _ = pack(tmp_path, encoder, texts)
    assert again.reader.num_record_batches == -(-len(again) // 4)
    assert np.array_equal(everything(again), expected)


def test_random_access_over_record_batches(tmp_path, encoder):
    blocks, _ = pack(tmp_path, encoder, TEXTS * 500, block=16)
    assert blocks.reader.num_record_batches > 1
    rows = np.random.default_rng(0).permutation(len(blocks))[:50].tolist()
    assert np.array_equal(blocks.tokens(rows), everything(blocks).reshape(-1, 16)[rows])
    assert blocks.tokens([]).shape == (0, 16)
    with pytest.raises(IndexError, match="of"):
        blocks.tokens([len(blocks)])


@pytest.mark.parametrize("limit", [1, 30, 100, 10_000])
def test_the_limit_stops_after_the_document_that_reaches_it(tmp_path, encoder, limit):
    texts = TEXTS * 4
    _, stats = pack(tmp_path, encoder, texts, limit=limit)
    _, _, counts = encoder.encode(texts, 0)
    before = np.cumsum(counts) - counts
    assert stats.documents == int((before < limit).sum())
    assert stats.documents + stats.documents_not_used == len(texts)
    assert stats.tokens_in == counts[: stats.documents].sum()


def test_step_end_to_end(documents_step, dense, run_step, tokenizer):
    made = documents_step({"web": TEXTS * 6, "code": TEXTS[::-1] * 8})
    settings_ = {"block": 16, "max_train_tokens": None, "max_validation_tokens": 40}
    found = run_step("tokens", settings_, {"documents": made, "dense": dense()})
    assert packed.domains(found) == ["code", "web"]
    assert (
        found.metrics["end_of_document"]
        == tokenizer.convert_tokens_to_ids("<|endoftext|>")
        != tokenizer.eos_token_id
    )
    stats = json.loads((found.folder / "stats.json").read_text())
    for name in packed.domains(found):
        metrics = found.metrics["domains"][name]
        for split in SPLITS:
            blocks = packed.open_blocks(found, name, split)
            assert blocks.block == 16
            assert blocks.tokens([0]).dtype == np.int32
            assert len(blocks) == metrics[f"{split}_blocks"] == stats[name][split]["blocks"]
            assert metrics[f"{split}_tokens"] == 16 * len(blocks)
        assert (
            metrics["validation_bytes"]
            == packed.open_blocks(found, name, "validation").bytes(range(len(blocks))).sum()
        )
    again = run_step("tokens", settings_, {"documents": made, "dense": dense()}, out="again")
    assert [o.sha256 for o in found.outputs] == [o.sha256 for o in again.outputs]


def test_a_truncated_file_is_named_with_what_to_do(documents_step, dense, run_step):
    made = documents_step({"web": TEXTS * 6})
    settings_ = {"block": 16, "max_train_tokens": None, "max_validation_tokens": None}
    found = run_step("tokens", settings_, {"documents": made, "dense": dense()})
    path = found.folder / "web.train.arrow"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-1], b""):
        path.write_bytes(data)
        with pytest.raises(
            InputError, match=r"web\.train\.arrow: .*delete .*manifest\.json and run the tokens step again"
        ):
            packed.open_blocks(found, "web", "train")
    path.unlink()
    with pytest.raises(InputError, match=r"web\.train\.arrow: missing"):
        packed.open_blocks(found, "web", "train")
    with pytest.raises(InputError, match="no domain 'wob'; domains: web"):
        packed.open_blocks(found, "wob", "train")


def test_too_little_text_names_the_domain(documents_step, dense, run_step):
    made = documents_step({"web": TEXTS})
    settings_ = {"block": 512, "max_train_tokens": None, "max_validation_tokens": None}
    with pytest.raises(
        InputError, match=r"data\.domains\.web: its train text is \d+ tokens, less than one block of 512"
    ):
        run_step("tokens", settings_, {"documents": made, "dense": dense()})


def test_a_foreign_tokenizer_is_refused(documents_step, dense, run_step):
    made = documents_step({"web": TEXTS * 6})
    settings_ = {"block": 16, "max_train_tokens": None, "max_validation_tokens": None}
    with pytest.raises(
        InputError,
        match=r"does not belong to the model: it makes token id \d+, the model's vocabulary ends at 299",
    ):
        run_step("tokens", settings_, {"documents": made, "dense": dense(vocabulary=300)})


def test_end_of_document_falls_back_to_the_end_of_sequence():
    class Plain:
        eos_token_id = 2

        def get_vocab(self):
            return {"a": 0, "</s>": 2}

    assert tokens.end_of_document(Plain()) == 2
    Plain.eos_token_id = None
    with pytest.raises(InputError, match="neither"):
        tokens.end_of_document(Plain())


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(InputError, match="fast tokenizer"):
        lengths.Encoder(object())
