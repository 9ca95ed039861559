"""Losses against naive computations, and gradients against autograd on full logits."""

import itertools

import pytest
import torch
from tiny import tiny_moe
from torch.nn import functional

from moesaic.distill.losses import OPTIONS, Text, kd
from moesaic.train.chunked import CrossEntropy, chunked_loss
from moesaic.train.objectives import IGNORE, Batch, Trainee, Weights
from moesaic.train.schedule import learning_rate


@pytest.fixture
def experts(tmp_path):
    """A tiny MoE with 32 shared neurons."""
    return tiny_moe(tmp_path, shared=32).model


def batch(rows=4, length=20, seed=0, padded=False, device="cpu"):
    ids = torch.randint(3, 512, (rows, length), generator=torch.Generator().manual_seed(seed))
    targets = torch.cat([ids[:, 1:], torch.full((rows, 1), IGNORE)], dim=1)
    mask = None
    if padded:
        mask = torch.ones_like(ids)
        mask[0, length // 2 :] = 0
        targets[0, length // 2 - 1 :] = IGNORE
    count = int((targets != IGNORE).sum())
    ids, targets, mask = (None if item is None else item.to(device) for item in (ids, targets, mask))
    return Batch(ids, targets, mask, ["a", "b", "a", "b"][:rows], count, 1.0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunked_cross_entropy_equals_full_logits(chunk):
    torch.manual_seed(0)
    hidden, head = torch.randn(50, 16, requires_grad=True), torch.randn(97, 16, requires_grad=True)
    targets = torch.randint(0, 97, (50,))

    def loss(logits, where):
        nll = functional.cross_entropy(logits, targets[where], reduction="none")
        return nll.sum(), nll[:, None]

    total, statistics = chunked_loss(hidden, head, loss, chunk)
    (total * 0.5).backward()
    found = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    expected = functional.cross_entropy(hidden @ head.T, targets, reduction="sum")
    (expected * 0.5).backward()
    assert torch.allclose(total, expected, rtol=1e-5)
    assert torch.allclose(statistics[:, 0].sum(), expected, rtol=1e-5)
    assert torch.allclose(found[0], hidden.grad, atol=1e-5)
    assert torch.allclose(found[1], head.grad, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_cross_entropy_made_in_place_equals_full_logits_in_float64(dtype, tolerance, chunk):
    """Logits are float32 whatever the model is, so in float64, too, the difference is that of float32."""
    stream = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(size, 16, generator=stream, dtype=torch.float64) for size in (50, 97))
    hidden[3] *= 200  # logits of hundreds: exp of them would overflow
    targets = torch.randint(0, 97, (50,), generator=stream)
    exact = [item.clone().requires_grad_() for item in (hidden, head)]
    own = [item.to(dtype).requires_grad_() for item in (hidden, head)]
    loss = CrossEntropy(targets, lambda nll: [nll, 2 * nll])
    total, statistics = chunked_loss(*own, loss, chunk)
    (total * 0.5).backward()
    wanted = functional.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none")
    (wanted.sum() * 0.5).backward()
    torch.testing.assert_close(
        statistics.double(), torch.stack([wanted, 2 * wanted], 1).detach(), rtol=1e-5, atol=1e-4
    )
    for mine, reference in zip(own, exact, strict=True):
        assert (mine.grad.double() - reference.grad).norm() / reference.grad.norm() < tolerance
    with torch.no_grad():  # the way without gradients
        assert torch.allclose(chunked_loss(*own, loss, chunk)[0].double(), wanted.sum(), rtol=1e-5)


def test_cross_entropy_equals_transformers(llama):
    item = batch()
    loss, statistics = Trainee(llama, Weights())(item)
    expected = llama(input_ids=item.ids_BT, labels=item.ids_BT).loss
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert float(statistics["nll_B"].sum()) == pytest.approx(float(expected) * item.step_targets, rel=1e-5)


def test_accumulation_and_sharding_do_not_change_the_gradient(experts):
    model = experts
    item = batch(padded=True)
    trainee = Trainee(model, Weights())
    trainee(item)[0].backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 4)):
        part = Batch(
            item.ids_BT[rows],
            item.targets_BT[rows],
            item.mask_BT[rows],
            item.domains[rows],
            item.step_targets,
            0.5,
        )
        trainee(part)[0].backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, whole[name], atol=1e-5), name


def test_padding_changes_nothing(experts):
    model = experts
    plain = batch(rows=2)
    longer = Batch(
        torch.cat([plain.ids_BT, torch.zeros(2, 5, dtype=torch.long)], 1), torch.cat([plain.targets_BT, torch.full((2, 5), IGNORE)], 1),
        torch.cat([torch.ones(2, 20), torch.zeros(2, 5)], 1).long(), plain.domains, plain.step_targets, 1.0,
    )  # fmt: skip
    trainee = Trainee(model, Weights(balance=0.1, z=0.01))
    one, two = trainee(plain), trainee(longer)
    assert torch.allclose(one[0], two[0], rtol=1e-5)
    assert torch.equal(one[1]["load_LE"], two[1]["load_LE"])


def forward_kl(student_NV, teacher_NV, temperature):
    """KL(teacher ; student) of logits per position, times temperature^2, nats [N]."""
    log_q_NV, log_p_NV = (logits.div(temperature).log_softmax(1) for logits in (student_NV, teacher_NV))
    nothing = Text(log_q_NV.new_zeros(len(log_q_NV)))
    return kd.loss(log_q_NV, log_p_NV, nothing, OPTIONS) * temperature**2


def test_kl_by_hand_and_zero_for_equal_models(llama):
    student, teacher = torch.randn(5, 11), torch.randn(5, 11)
    p, q = teacher.softmax(1), student.softmax(1)
    assert torch.allclose(forward_kl(student, teacher, 1.0), (p * (p / q).log()).sum(1), atol=1e-6)
    loss, statistics = Trainee(llama, Weights(kl=1.0), llama)(batch())
    assert abs(float(loss)) < 1e-6
    assert float(statistics["nll_B"].sum()) > 0


def test_kl_gradient_points_to_the_teacher():
    torch.manual_seed(0)
    hidden, head = torch.randn(6, 8), torch.randn(20, 8, requires_grad=True)
    teacher = torch.randn(6, 20)
    total, _ = chunked_loss(
        hidden, head, lambda logits, where: (forward_kl(logits, teacher[where], 2.0).sum(), logits[:, :1]), 4
    )
    total.backward()
    expected = (
        forward_kl(hidden @ head, teacher, 2.0)
        if head.shape[0] == 8
        else forward_kl(hidden @ head.T, teacher, 2.0)
    )
    (grad,) = torch.autograd.grad(expected.sum(), head)
    assert torch.allclose(head.grad, grad, atol=1e-5)
    assert float(forward_kl(hidden @ (head - 0.01 * head.grad).T, teacher, 2.0).sum()) < float(total)


def test_learning_rate_shape():
    rates = [learning_rate(step, 100, 1.0, 10, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a <= b for a, b in itertools.pairwise(rates[:11]))
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    told = [learning_rate(step, 10**6, 1.0, 10, 0.1, share=step / 100) for step in range(100)]
    assert told[:10] == rates[:10], "a budget of tokens has its warm-up in steps, too"
    assert told[50] == pytest.approx(0.55)
    assert told[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a > b for a, b in itertools.pairwise(told[10:]))
    line = [learning_rate(step, 110, 2.0, 10, 0.0, "linear") for step in range(110)]
    assert line[10] == 2.0
    assert line[60] == pytest.approx(1.0)
    assert line[85] == pytest.approx(0.5)
