"""Several conversations in one sequence: the same losses, gradients and router loads as with padding."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_llama, tiny_moe

from moesaic.train import packing, streams
from moesaic.train.objectives import IGNORE, Trainee, Weights
from moesaic.train.policy import DEFAULTS
from moesaic.train.streams import Row

CPU = torch.device("cpu")
LENGTHS = (24, 3, 11, 9, 1, 13, 7, 2)
NAMES = ["a", "b", "a", "c", "c", "b", "a", "a"]


def rows(seed: int = 0) -> list[Row]:
    stream = np.random.default_rng(seed)
    found = []
    for length in LENGTHS:
        ids = stream.integers(3, 512, length)
        targets = np.append(ids[1:], IGNORE)
        targets[: length // 3] = IGNORE  # a question
        found.append(Row(ids, targets))
    return found


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_every_row_is_in_one_sequence_and_none_is_too_long(lengths: list[int]) -> None:
    capacity = max(lengths)
    found = packing.bins(lengths, capacity)
    assert sorted(row for members in found for row in members) == list(range(len(lengths)))
    used = [sum(lengths[row] for row in members) for members in found]
    assert max(used) <= capacity
    # first fit: of any two sequences at most one is less than half full
    assert sum(2 * tokens <= capacity for tokens in used) <= 1
    assert found == packing.bins(lengths, capacity)


def both(trainee: Trainee, seed: int = 0) -> list[tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]]:
    """Loss, statistics and gradient of the same rows, padded and packed."""
    out = []
    for collate in (streams.collate, packing.collate):
        items = rows(seed)
        batch = collate(items, NAMES, streams.count_targets(items), 1.0, CPU)
        trainee.zero_grad()
        loss, told = trainee(batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in trainee.parameters() if p.grad is not None])
        out.append((loss.detach(), told, gradient))
    return out


@pytest.mark.parametrize("kind", ["dense", "mixtral", "granitemoeshared", "qwen2_moe", "glm4_moe"])
def test_a_step_is_the_same(tmp_path, kind):
    shared, experts = (0, 4) if kind == "mixtral" else (32, 8)
    model = (
        tiny_llama()
        if kind == "dense"
        else tiny_moe(tmp_path, shared=shared, experts=experts, family=kind).model
    )
    trainee = Trainee(model.train(), Weights(balance=0.0 if kind == "dense" else 0.5, z=0.1))
    padded, packed = both(trainee)
    assert float(packed[0]) == pytest.approx(float(padded[0]), rel=1e-5)
    assert torch.equal(packed[1]["targets_B"], padded[1]["targets_B"])
    torch.testing.assert_close(packed[1]["nll_B"], padded[1]["nll_B"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[2], padded[2], rtol=1e-3, atol=1e-5)
    if kind != "dense":
        assert torch.equal(packed[1]["load_LE"], padded[1]["load_LE"]), "neither padding nor neighbours count"


def test_fewer_tokens_go_through_the_model():
    items = rows()
    batch = packing.collate(items, NAMES, 1, 1.0, CPU)
    assert batch.ids_BT.shape == (3, 24)
    assert batch.mask_BT is not None
    assert int(batch.mask_BT.sum()) == sum(LENGTHS)
    assert batch.inputs["attention_mask"] is None
    assert streams.collate(items, NAMES, 1, 1.0, CPU).ids_BT.shape == (8, 24)


def test_a_row_does_not_see_its_neighbours():
    trainee = Trainee(tiny_llama().eval(), Weights())
    items = rows()
    batch = packing.collate(items, NAMES, 1, 1.0, CPU)
    with torch.no_grad():
        before = trainee(batch)[1]["nll_B"]
        assert batch.rows_BT is not None
        other = batch.ids_BT.where(batch.rows_BT != 2, (batch.ids_BT + 7) % 512)
        after = trainee(dataclasses.replace(batch, ids_BT=other))[1]["nll_B"]
        # Without positions that begin anew each row sees those before it.
        flat = torch.arange(batch.ids_BT.shape[1]).expand_as(batch.ids_BT)
        blind = trainee(dataclasses.replace(batch, positions_BT=flat))[1]["nll_B"]
    changed = (before != after).nonzero().flatten().tolist()
    assert changed == [2]
    assert int(((before - blind).abs() > 0.01).sum()) >= 3


def test_beside_a_teacher_and_from_its_cache_it_is_the_same(tmp_path):
    student = tiny_moe(tmp_path, shared=32, experts=8).model.train()
    torch.manual_seed(5)
    trainee = Trainee(student, Weights(kl=0.7), tiny_llama())
    padded, packed = both(trainee)
    assert float(packed[0]) == pytest.approx(float(padded[0]), rel=1e-5)
    torch.testing.assert_close(packed[1]["distill_B"], padded[1]["distill_B"], rtol=1e-5, atol=1e-5)
    trainee.eval()
    told = []
    for collate in (streams.collate, packing.collate):
        with torch.no_grad():
            told.append(trainee(collate(rows(), NAMES, 1, 1.0, CPU))[1])
    for key in ("forward_kl_B", "reverse_kl_B", "entropy_B"):
        torch.testing.assert_close(told[0][key], told[1][key], rtol=1e-5, atol=1e-5)


def test_noise_and_capacity_leave_padding_out(tmp_path):
    model = tiny_moe(tmp_path, shared=32, experts=8).model
    trainee = Trainee(model.train(), Weights(balance=0.1, router=DEFAULTS | {"capacity": 1.0}))
    padded, packed = both(trainee)
    assert torch.equal(packed[1]["load_LE"], padded[1]["load_LE"])
    assert packed[1]["dropped"] == padded[1]["dropped"] > 0


def test_rows_of_one_length_stay_as_they_are():
    items = [row._replace(ids=row.ids[:1], targets=row.targets[:1]) for row in rows()]
    batch = packing.collate(items, NAMES, 1, 1.0, CPU)
    assert batch.rows_BT is None
    assert batch.positions_BT is None
