"""Pair losses by hand, and the trainee's gradient against autograd on the full logits."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, tiny_moe
from torch.nn import functional

from moesaic.errors import InputError
from moesaic.train import pair_losses, pairs, streams
from moesaic.train.objectives import Trainee, Weights
from moesaic.train.pair_losses import METHODS, Pairs

OPTIONS = {"beta": 0.1, "label_smoothing": 0.0, "length_normalised": False, "nll": 0.0}


def values(*numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype)


BY_HAND = Pairs(
    values(-10.0, -5.0),
    values(-12.0, -3.0),
    values(-11.0, -5.0),
    values(-11.0, -5.0),
    values(4, 5),
    values(2, 10),
)
"""Log ratios: chosen 1 and 0, rejected -1 and 2; so differences 2 and -2."""


def test_dpo_by_hand():
    found = METHODS["dpo"](BY_HAND, OPTIONS | {"beta": 0.5})
    expected = [math.log1p(math.exp(-1.0)), math.log1p(math.exp(1.0))]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_dpo_with_smoothing_and_by_length():
    smooth = METHODS["dpo"](BY_HAND, OPTIONS | {"beta": 0.5, "label_smoothing": 0.1})
    right, wrong = math.log1p(math.exp(-1.0)), math.log1p(math.exp(1.0))
    assert smooth.tolist() == pytest.approx([0.9 * right + 0.1 * wrong, 0.9 * wrong + 0.1 * right], rel=1e-12)
    # ratios per token: chosen 1/4 and 0, rejected -1/2 and 2/10; differences 0.75 and -0.2
    short = METHODS["dpo"](BY_HAND, OPTIONS | {"beta": 2.0, "length_normalised": True})
    assert short.tolist() == pytest.approx([math.log1p(math.exp(-1.5)), math.log1p(math.exp(0.4))], rel=1e-12)


def test_ipo_by_hand():
    found = METHODS["ipo"](BY_HAND, OPTIONS | {"beta": 0.25})
    assert found.tolist() == pytest.approx([(2 - 2) ** 2, (-2 - 2) ** 2], abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("by_length", [False, True])
def test_gradients_and_their_signs(name, by_length):
    torch.manual_seed(0)
    options = OPTIONS | {"beta": 0.7, "label_smoothing": 0.1, "length_normalised": by_length}
    lengths = values(3, 8, 5), values(6, 2, 9)
    ref = -torch.rand(3, dtype=torch.float64), -torch.rand(3, dtype=torch.float64)
    policy = [(-torch.rand(3, dtype=torch.float64)).requires_grad_() for _ in range(2)]

    def loss(chosen, rejected):
        return METHODS[name](Pairs(chosen, rejected, *ref, *lengths), options)

    assert torch.autograd.gradcheck(loss, policy)
    up, down = torch.autograd.grad(loss(*policy).sum(), policy)
    assert (up < 0).all(), "a likelier chosen answer lowers the loss"
    assert (down > 0).all(), "a likelier rejected answer raises it"


# ---------------------------------------------------------------- the model with its loss


@pytest.fixture
def model(tmp_path):
    return tiny_moe(tmp_path, shared=32).model


def rows(count=4, seed=0):
    generator = np.random.default_rng(seed)
    found = []
    for i in range(count):
        prompt = generator.integers(3, VOCABULARY, 4 + i).tolist()
        answers = [generator.integers(3, VOCABULARY, n).tolist() for n in generator.integers(2, 9, 2)]
        found.append(
            pairs.PairRow(*(pairs.answer_row(prompt, a) for a in answers), tuple(generator.normal(-40, 3, 2)))
        )
    return found


def batch(items, step_pairs=None, share=1.0):
    return pairs.collate(items, ["a"] * len(items), step_pairs or len(items), share, torch.device("cpu"))


def naive(model, items, options):
    """The same by full logits, one answer at a time."""
    sums = []
    for row in items:
        pair = []
        for answer in (row.chosen, row.rejected):
            logits_TV = model(torch.from_numpy(answer.ids)[None]).logits[0]
            nll_T = functional.cross_entropy(
                logits_TV, torch.from_numpy(answer.targets), reduction="none", ignore_index=-100
            )
            pair.append((-nll_T.sum(), int((answer.targets != -100).sum())))
        sums.append(pair)
    (chosen, more), (rejected, less) = (
        (torch.stack([pair[i][0] for pair in sums]), torch.tensor([pair[i][1] for pair in sums]))
        for i in (0, 1)
    )
    reference = torch.tensor([row.reference for row in items], dtype=torch.float32)
    loss = METHODS["dpo"](Pairs(chosen, rejected, *reference.T, more, less), options)
    return (loss - options["nll"] * chosen / more).mean()


@pytest.mark.parametrize(
    "changes", [{}, {"length_normalised": True, "beta": 2.0}, {"nll": 0.5, "label_smoothing": 0.1}]
)
def test_loss_and_gradient_equal_full_logits(model, changes):
    options, items = OPTIONS | changes, rows()
    twin = copy.deepcopy(model)  # without the trainee's hooks on the routers
    loss, statistics = pairs.PairTrainee(model, Weights(), "dpo", options)(batch(items))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    expected = naive(twin, items, options)
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    for name, p in twin.named_parameters():
        if p.grad is not None:
            assert torch.allclose(found[name], p.grad, atol=2e-4 * float(p.grad.abs().max() + 1e-3)), name
    assert set(statistics) >= {f"row/{name}" for name in pairs.PairTrainee.ROWS}
    margin = statistics["row/reward/chosen"] - statistics["row/reward/rejected"]
    assert torch.allclose(margin, statistics["row/reward/margin"])


def test_accumulation_does_not_change_the_gradient_and_the_balance_loss_stays_in(model):
    items = rows()
    trainee = pairs.PairTrainee(model, Weights(), "dpo", OPTIONS)
    trainee(batch(items))[0].backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part in (items[:1], items[1:]):
        trainee(batch(part, len(items), len(part) / len(items)))[0].backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(p.grad, whole[name], atol=1e-5), name
    model.zero_grad()
    balanced = pairs.PairTrainee(model, Weights(balance=0.5), "dpo", OPTIONS)
    plain, more = trainee(batch(items))[0], balanced(batch(items))
    assert float((more[0] - plain).detach()) == pytest.approx(0.5 * float(more[1]["balance"]), rel=1e-4)


def test_no_gradient_is_needed_to_measure(model):
    trainee, items = pairs.PairTrainee(model, Weights(), "dpo", OPTIONS), rows()
    with torch.no_grad():
        measured = trainee(batch(items))[0]
    assert not measured.requires_grad
    assert torch.allclose(measured, trainee(batch(items))[0].detach())


def test_chosen_stream_is_supervised_fine_tuning_on_the_chosen_answers(model):
    prompt, good, bad = [5, 6, 7], [8, 9, 2], [10, 2]
    record = {"id": "x", "domain": "a", "prompt": prompt}
    record |= {"chosen": {"ids": good, "logp": -1.0}, "rejected": {"ids": bad, "logp": -2.0}}
    sample = pairs.Sample("a", 0)
    (row,) = pairs.ChosenStream([record]).rows([sample])
    assert row.ids.tolist() == [5, 6, 7, 8, 9, 2]
    assert row.targets.tolist() == [-100, -100, 8, 9, 2, -100]
    (pair,) = pairs.PairStream([record]).rows([sample])
    assert pair.rejected.ids.tolist() == [5, 6, 7, 10, 2]
    assert pair.reference == (-1.0, -2.0)
    batch = streams.collate([row], ["a"], 3, 1.0, torch.device("cpu"))
    twin = copy.deepcopy(model)
    loss, _ = Trainee(model, Weights())(batch)
    with torch.no_grad():
        log_TV = twin(torch.tensor([prompt + good])).logits[0].log_softmax(-1)
    assert float(loss.detach()) == pytest.approx(
        -sum(float(log_TV[2 + i, t]) for i, t in enumerate(good)) / 3, rel=1e-5
    )


def test_the_split_is_fixed_by_seed_and_id_and_never_empty():
    records = [{"id": f"i{n}"} for n in range(40)]
    train, held = pairs.split(records, 0.1, 3)
    assert len(train) + len(held) == 40
    assert 1 <= len(held) <= 8
    more = pairs.split([*records, *({"id": f"other{n}"} for n in range(200))], 0.1, 3)
    assert [r for r in more[1] if r in records] == held, "another round's questions move nothing"
    again = pairs.split(records[::-1], 0.1, 3)
    assert {r["id"] for r in again[1]} == {r["id"] for r in held}
    assert {r["id"] for r in pairs.split(records, 0.1, 4)[1]} != {r["id"] for r in held}
    assert [len(side) for side in pairs.split(records[:2], 0.0, 0)] == [1, 1]
    with pytest.raises(InputError, match="1 pairs, at least 2"):
        pairs.split(records[:1], 0.1, 0)


def test_reference_defaults_are_read_by_every_method():
    for name, method in pair_losses.METHODS.items():
        assert method(BY_HAND, OPTIONS).shape == (2,), name
