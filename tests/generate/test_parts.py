"""Pieces: nothing is lost or doubled when a run is killed, shards do not change the records, damage is named."""

import json
import signal

import pytest
import torch
from asking import Words, prompts
from tiny import tiny_llama

from moesaic.errors import InputError, Interrupted
from moesaic.flow import signals
from moesaic.generate import decode, parts, sample, score
from moesaic.generate.decode import Decoding
from moesaic.generate.sample import Plan


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def work(tmp_path, shard=0, shards=1, count=10, **identity):
    keys = [f"k{i}" for i in range(count)]
    return parts.Work("w", "records", identity, keys, 3, shard, shards, tmp_path)


def record(i):
    return {"id": f"k{i}", "value": i * i}


def test_a_killed_run_goes_on_without_losing_or_doubling(tmp_path):
    made = []

    def one(rows, die_at=None):
        for i in rows:
            if i == die_at:
                raise Killed
            made.append(i)
        return [record(i) for i in rows]

    for moment in (4, 7):
        with pytest.raises(Killed):
            parts.make(work(tmp_path), lambda rows, moment=moment: one(rows, moment))
    assert parts.make(work(tmp_path), one) == [record(i) for i in range(10)]
    assert sorted(made) == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9], (
        "finished pieces were made again, or a piece is missing"
    )
    before = list(made)
    assert parts.make(work(tmp_path), one) == [record(i) for i in range(10)]
    assert made == before, "a second run makes nothing"


def test_shards_share_the_pieces_and_join_to_the_whole(tmp_path):
    whole = parts.make(work(tmp_path / "a"), lambda rows: [record(i) for i in rows])
    found = []
    for shard in range(3):
        found += parts.make(work(tmp_path / "b", shard, 3), lambda rows: [record(i) for i in rows])
    assert sorted(found, key=lambda item: item["value"]) == whole
    # with another number of shards nothing is left to make
    assert parts.make(work(tmp_path / "b"), lambda rows: pytest.fail("made again")) == whole


def test_another_identity_reads_nothing_of_the_first(tmp_path):
    parts.make(work(tmp_path, model="a"), lambda rows: [record(i) for i in rows])
    other = parts.make(work(tmp_path, model="b"), lambda rows: [{"id": f"k{i}", "value": -1} for i in rows])
    assert {item["value"] for item in other} == {-1}


def test_a_request_to_stop_keeps_what_is_done(tmp_path):
    def one(rows):
        signals.request_stop()
        return [record(i) for i in rows]

    try:
        with pytest.raises(Interrupted, match="3 of 10 records are kept"):
            parts.make(work(tmp_path), one)
    finally:
        signals.clear()
        signals.restore()
    assert len(list(work(tmp_path).folder.glob("part-*.jsonl"))) == 1


def test_signals_are_given_back(tmp_path):
    """What comes after sampling in a step (an evaluation's other suites) does not ask whether to stop: there a signal has to end it."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    asked = []

    def one(rows):
        asked.append(signal.getsignal(signal.SIGTERM))
        return [record(i) for i in rows]

    parts.make(work(tmp_path), one)
    assert asked[0] != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before

    def last(rows):
        signals.request_stop()
        return one(rows)

    try:
        with pytest.raises(Interrupted, match="all records are kept"):
            parts.make(work(tmp_path, count=3, model="b"), last)
    finally:
        signals.clear()


@pytest.mark.parametrize("text", ['{"id": "k0"', json.dumps({"id": "k1"}) + "\n", ""])
def test_a_damaged_piece_is_named(tmp_path, text):
    parts.make(work(tmp_path), lambda rows: [record(i) for i in rows])
    path = work(tmp_path).folder / "part-000000.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"part-000000\.jsonl: damaged.*delete it"):
        parts.make(work(tmp_path), lambda rows: [record(i) for i in rows])


# ---------------------------------------------------------------- sampling and scoring


def plan(**changes):
    return Plan(
        **({"decoding": Decoding(8, 0.8, 0.95), "draws": 3, "seed": 5, "batch": 6, "part": 2} | changes)
    )


def test_sampling_is_the_same_killed_sharded_or_in_other_batches(tmp_path, llama, monkeypatch):
    asked = prompts(7)
    whole = sample.answer(llama, Words(), "m", asked, plan(), "s", tmp_path / "a")
    assert [item["id"] for item in whole] == [prompt.id for prompt in asked]
    assert all(len(item["answers"]) == 3 for item in whole)
    calls = []
    real = decode.decode

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) in (2, 4):
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(decode, "decode", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            sample.answer(llama, Words(), "m", asked, plan(), "s", tmp_path / "b")
    assert sample.answer(llama, Words(), "m", asked, plan(), "s", tmp_path / "b") == whole
    pieces = sorted((tmp_path / "a").rglob("*.jsonl")), sorted((tmp_path / "b").rglob("*.jsonl"))
    assert [p.read_bytes() for p in pieces[0]] == [p.read_bytes() for p in pieces[1]]
    halves = [
        sample.answer(llama, Words(), "m", asked, plan(shard=i, shards=2), "s", tmp_path / "c")
        for i in (0, 1)
    ]
    assert sorted(halves[0] + halves[1], key=lambda item: item["id"]) == whole
    assert sample.answer(llama, Words(), "m", asked, plan(batch=40, part=7), "s", tmp_path / "d") == whole


def test_a_batch_below_the_draws_is_kept_to(tmp_path, llama, monkeypatch):
    """Who lowers it does so because memory ran out."""
    asked, rows = prompts(3), []
    whole = sample.answer(llama, Words(), "m", asked, plan(), "s", tmp_path / "a")
    real = decode.decode

    def counting(model, texts, seeds, *more):
        rows.append(sum(len(own) for own in seeds))
        return real(model, texts, seeds, *more)

    monkeypatch.setattr(decode, "decode", counting)
    assert sample.answer(llama, Words(), "m", asked, plan(batch=2), "s", tmp_path / "b") == whole
    assert rows == [2, 1] * 3


def test_scores_equal_a_plain_forward_pass_and_ignore_the_batch(tmp_path, llama):
    items = [
        score.Scored(f"a{i}", prompt.ids, [(7 * i + j) % 500 + 3 for j in range(1 + 3 * i)])
        for i, prompt in enumerate(prompts(7))
    ]
    found = score.score(llama, "m", items, 3, "s", part=4, cache=tmp_path)
    for item, record in zip(items, found, strict=True):
        with torch.no_grad():
            log_TV = llama(torch.tensor([item.prompt + item.answer])).logits[0].log_softmax(-1)
        start = len(item.prompt) - 1
        expected = sum(float(log_TV[start + j, token]) for j, token in enumerate(item.answer))
        assert record["id"] == item.id
        assert record["tokens"] == len(item.answer)
        assert record["logp"] == pytest.approx(expected, rel=1e-5)
    other = score.score(tiny_llama(seed=1), "other", items, 3, "s", part=4, cache=tmp_path)
    assert other != found, "another model's scores must not come from the first one's cache"


def test_answers_that_differ_in_their_last_token_share_a_sequence(tmp_path, llama, monkeypatch):
    items = [
        score.Scored(f"{prompt.id}={value}", prompt.ids, [50, 60 + value])
        for prompt in prompts(3)
        for value in range(6)
    ]
    sequences = []
    right = llama.base_model.forward
    monkeypatch.setattr(
        llama.base_model,
        "forward",
        lambda **given: sequences.append(len(given["input_ids"])) or right(**given),
    )
    found = score.score(llama, "m", items, 2, "s", cache=tmp_path)
    assert sum(sequences) == 3
    assert [record["id"] for record in found] == [item.id for item in items]
    for item, record in zip(items, found, strict=True):
        alone = score.log_probabilities(llama, [item])[0]
        assert record["logp"] == pytest.approx(alone, rel=1e-5)
