"""Token losses: by hand on a vocabulary of four (numpy, other formulas than the source), gradients, signs, half precision, student = teacher."""

import copy

import numpy as np
import pytest
import torch
from tiny import tiny_llama

from moesaic.distill.losses import METHODS, OPTIONS, Text, abkd, akl, cald
from moesaic.schema import LossOptions
from moesaic.train.objectives import IGNORE, Batch, Trainee, Weights

DIVERGENCES = ["kd", "rkl", "jsd", "akl", "skl", "srkl", "cald", "abkd"]
TEACHER = np.array([[0.5, 0.25, 0.125, 0.125], [0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.45, 0.45]])
STUDENT = np.array([[0.2, 0.4, 0.3, 0.1], [0.6, 0.2, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
NEXT = np.array([1, 0, 2])
OWN = np.array([False, True, False])


def by_hand(name: str) -> np.ndarray:
    """Nats of each of the three positions."""
    found = []
    for n, (p, q) in enumerate(zip(TEACHER, STUDENT, strict=True)):
        value = 0.0
        if name in ("sft", "seqkd"):
            value = np.log(1 / q[NEXT[n]])
        elif name == "kd":
            for a, b in zip(p, q, strict=True):
                value += a * np.log(a / b)
        elif name == "rkl":
            for a, b in zip(p, q, strict=True):
                value += b * np.log(b / a)
        elif name == "jsd":  # beta = 0.3
            for a, b in zip(p, q, strict=True):
                m = 0.3 * a + 0.7 * b
                value += 0.3 * a * np.log(a / m) + 0.7 * b * np.log(b / m)
        elif name == "akl":
            # heads (mass within 0.5, at least the likeliest token): {0}, {0} although it has 0.7, {2}
            head = {0: [0], 1: [0], 2: [2]}[n]
            gap = np.abs(p - q)
            share = gap[head].sum() / gap.sum()
            value = share * by_hand("kd")[n] + (1 - share) * by_hand("rkl")[n]
        elif name == "skl":
            value = sum(a * np.log(a / (0.1 * a + 0.9 * b)) for a, b in zip(p, q, strict=True))
        elif name == "srkl":
            value = sum(b * np.log(b / (0.9 * a + 0.1 * b)) for a, b in zip(p, q, strict=True))
        elif name == "cald":
            # half of the training is done: beta = 0.5 + 0.5 * (0.9 - 0.5)
            value = 0.7 * by_hand("srkl")[n] if OWN[n] else 0.3 * by_hand("skl")[n]
        elif name == "abkd":  # alpha = 0.2, beta = 0.7
            for a, b in zip(p, q, strict=True):
                value -= (a**0.2 * b**0.7 - 2 / 9 * a**0.9 - 7 / 9 * b**0.9) / 0.14
        elif name == "dpkd-token":
            t, s = p.argmax(), q.argmax()
            value = np.log1p(np.exp(-0.5 * (np.log(q[t] / q[s]) - np.log(p[t] / p[s]))))
        found.append(value)
    return np.array(found)


def options():
    own = copy.deepcopy(OPTIONS)
    own["jsd"]["beta"] = 0.3
    own["cald"]["beta_end"] = 0.9
    own["dpkd_token"] = {"beta": 0.5}
    return own


def text(log_q, log_p):
    index = torch.from_numpy(NEXT)[:, None]
    nll, taught = (-log.gather(1, index)[:, 0] for log in (log_q, log_p))
    return Text(nll, taught, torch.from_numpy(OWN), 0.5)


def evaluate(name, log_q, log_p):
    return METHODS[name].loss(log_q, log_p, text(log_q, log_p), options())


def given(dtype=torch.float64):
    return torch.from_numpy(STUDENT).log().to(dtype), torch.from_numpy(TEACHER).log().to(dtype)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_by_hand(name):
    found = evaluate(name, *given())
    np.testing.assert_allclose(found.numpy(), by_hand(name), rtol=1e-12, atol=1e-15)
    assert (found > 0).all()


def test_options_are_the_schemas_defaults():
    assert LossOptions().model_dump(mode="json") == OPTIONS


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"akl", "dpkd-token"}))
def test_gradients_are_those_of_finite_differences(name):
    logits = torch.randn(
        3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    log_p = given()[1]

    def total(values):
        return evaluate(name, values.log_softmax(dim=1), log_p)

    assert torch.autograd.gradcheck(total, logits)


def test_gradients_of_the_losses_that_hold_something_fixed():
    """akl's weight has no gradient, nor has the choice of tokens in dpkd-token: what is left is checked with both held."""
    logits = torch.randn(
        3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    log_p = given()[1]
    log_q = logits.log_softmax(dim=1)
    share = akl.head_share(log_q, log_p, 0.5, text(log_q, log_p))
    (found,) = torch.autograd.grad(evaluate("akl", log_q, log_p).sum(), logits)
    held = share * evaluate("kd", logits.log_softmax(1), log_p) + (1 - share) * evaluate(
        "rkl", logits.log_softmax(1), log_p
    )
    (expected,) = torch.autograd.grad(held.sum(), logits)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(lambda x: evaluate("dpkd-token", x.log_softmax(1), log_p), logits)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_step_against_the_gradient_moves_the_student_towards_the_teacher(name):
    """On the tokens that decide: the student's probability of the teacher's likeliest token rises where it was too low (of the next one, without teacher)."""
    log_q, log_p = given()
    logits = log_q.clone().requires_grad_()
    (grad,) = torch.autograd.grad(evaluate(name, logits.log_softmax(1), log_p).sum(), logits)
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(grad.sum(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    rows, best = [0], [0]  # of the first position: p 0.5, q 0.2
    if not METHODS[name].teacher:
        rows, best = [0, 1, 2], NEXT.tolist()
    assert (grad[rows, best] < 0).all()
    after = (logits - 0.05 * grad).log_softmax(1)
    assert float(evaluate(name, after, log_p).sum()) < float(evaluate(name, log_q, log_p).sum())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_half_precision_is_added_up_in_float32(name):
    draw = torch.Generator().manual_seed(0)
    log_q, log_p = (torch.randn(3, 5000, generator=draw).log_softmax(1).bfloat16() for _ in range(2))
    found = METHODS[name].loss(log_q, log_p, text(log_q.float(), log_p.float()), options())
    exact = METHODS[name].loss(
        log_q.double(), log_p.double(), text(log_q.double(), log_p.double()), options()
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_distributions_have_no_distance_and_no_gradient(name):
    logits = torch.randn(
        3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    log_q = logits.log_softmax(1)
    found = evaluate(name, log_q, log_q.detach())
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert float(found.detach().abs().max()) < 1e-13
    assert float(grad.abs().max()) < 1e-13


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("kind", ["full", "sampled", "rest"])
def test_a_student_that_is_its_teacher_stays_it(name, kind):
    """Twenty steps of plain gradient descent on the whole model, from the teacher itself; with an offline teacher too."""
    from offline import cached

    student = tiny_llama()
    start = {key: value.clone() for key, value in student.state_dict().items()}
    teacher = copy.deepcopy(student)
    ids = torch.randint(3, 512, (2, 12), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORE)], dim=1)
    batch = Batch(ids, targets, None, ["a", "b"], int((targets != IGNORE).sum()), 1.0)
    if kind != "full":
        batch = cached(teacher, batch, top=16, tail=8 if kind == "sampled" else 0)
    trainee = Trainee(
        student, Weights(kl=1.0, loss=name, student_text=("b",)), teacher if kind == "full" else None
    )
    optimizer = torch.optim.SGD(trainee.parameters(), 0.01)
    for _ in range(20):
        loss, _ = trainee(batch)
        assert abs(float(loss.detach())) < 1e-5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, value in student.state_dict().items():
        torch.testing.assert_close(value, start[key], atol=1e-4, rtol=1e-4)


def test_the_plane_of_abkd_holds_the_known_divergences():
    log_q, log_p = given()
    for alpha, beta, name in ((1.0, 0.0, "kd"), (0.0, 1.0, "rkl")):
        torch.testing.assert_close(abkd.divergence(log_q, log_p, alpha, beta), evaluate(name, log_q, log_p))
        nearly = abkd.divergence(log_q, log_p, alpha or 1e-6, beta or 1e-6)
        torch.testing.assert_close(nearly, evaluate(name, log_q, log_p), rtol=1e-4, atol=1e-6)
    hellinger = 4 * (1 - np.sqrt(TEACHER * STUDENT).sum(axis=1))
    np.testing.assert_allclose(abkd.divergence(log_q, log_p, 0.5, 0.5).numpy(), hellinger)


def test_jsd_has_forward_and_reverse_kl_as_its_ends():
    own = options()
    log_q, log_p = given()
    for beta, name, scale in ((1e-6, "kd", 1e-6), (1 - 1e-6, "rkl", 1e-6)):
        own["jsd"]["beta"] = beta
        found = METHODS["jsd"].loss(log_q, log_p, text(log_q, log_p), own) / scale
        torch.testing.assert_close(found, evaluate(name, log_q, log_p), rtol=1e-4, atol=1e-5)


def test_skewness_follows_the_gap_and_its_clip():
    gap = torch.tensor([-0.2, 0.0, 0.05, 0.099, 0.1, 0.5])
    found = cald.skewness(gap, 0.1, 0.1)
    expected = [0.1, 0.1, 0.01, 0.01, 0.1, 0.1]
    torch.testing.assert_close(found[[0, 1, 2, 4, 5]], torch.tensor(expected)[[0, 1, 2, 4, 5]])
    assert 0.01 <= float(found[3]) < 0.1
    torch.testing.assert_close(cald.skewness(gap, 0.1, 0.0), torch.full((6,), 0.1))


def test_equal_student_and_teacher_give_akl_a_weight():
    """The public code divides 0 by 0 there."""
    log_q, _ = given()
    assert (akl.head_share(log_q, log_q, 0.5, text(log_q, log_q)) == 0.5).all()
