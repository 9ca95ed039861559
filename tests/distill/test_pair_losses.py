"""Pair losses: DPKD is DPO with the teacher as reference, its gradient, what the guards do, and the collapse that they are there for."""

import math

import numpy as np
import pytest
import torch

from moesaic.distill.losses import PAIRS, dpkd_guarded
from moesaic.train.pair_losses import Pairs


def pairs(count=6, seed=0, dtype=torch.float64):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, 40, size=(2, count))
    values = [-lengths[side] * draw.uniform(0.5, 3.0, count) for side in (0, 1, 0, 1)]
    tensors = [torch.tensor(value, dtype=dtype) for value in values]
    return [*tensors, *(torch.tensor(length, dtype=dtype) for length in lengths)]


def dpo(
    policy_chosen,
    policy_rejected,
    reference_chosen,
    reference_rejected,
    lengths_chosen,
    lengths_rejected,
    beta,
):
    """DPO with rewards per token, written from its own paper (eq. 7): softplus of the negated difference of log-ratios."""
    found = []
    for a, b, c, d, m, n in zip(
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        lengths_chosen,
        lengths_rejected,
        strict=True,
    ):
        chosen, rejected = beta * math.log(math.exp((a - c) / m)), beta * math.log(math.exp((b - d) / n))
        found.append(-math.log(1 / (1 + math.exp(-(chosen - rejected)))))
    return found


def test_dpkd_is_dpo_with_the_teacher_as_reference():
    given = pairs()
    found, statistics = PAIRS["dpkd"](Pairs(*given), {"beta": 0.7})
    np.testing.assert_allclose(found.numpy(), dpo(*(x.tolist() for x in given), 0.7), rtol=1e-10)
    assert ((statistics["margin"] > 0).float() == statistics["accuracy"]).all()
    assert not statistics["margin"].requires_grad


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_gradient_agrees_with_finite_differences(name):
    chosen, rejected, *rest = pairs()
    settings = {"beta": 0.5, "anchor": 0.3, "floor": 0.4, "clip": 0.2}
    assert torch.autograd.gradcheck(
        lambda a, b: PAIRS[name](Pairs(a, b, *rest), settings)[0],
        (chosen.requires_grad_(), rejected.requires_grad_()),
    )


def test_the_sign_that_the_paper_prints_wrong():
    """d loss / d log q(y_t) = -beta / |y_t| s(-margin): the weight falls as the margin grows. With the printed sign it would rise."""
    given = pairs()
    given[0].requires_grad_()
    found, statistics = PAIRS["dpkd"](Pairs(*given), {"beta": 2.0})
    (grad,) = torch.autograd.grad(found.sum(), given[0])
    margin, length = statistics["margin"], given[4]
    torch.testing.assert_close(grad, -2.0 / length * torch.sigmoid(-margin))
    printed = -2.0 / length * torch.sigmoid(margin)
    assert not torch.allclose(grad, printed, rtol=0.05)
    weight = (grad * length).abs()
    order = margin.argsort()
    assert (weight[order].diff() < 0).all()


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_signs_and_half_precision(name):
    chosen, rejected, *rest = pairs()
    loss, _ = PAIRS[name](
        Pairs(chosen.requires_grad_(), rejected.requires_grad_(), *rest), {"beta": 0.5, "clip": 100.0}
    )
    to_chosen, to_rejected = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert (to_chosen < 0).all(), "more of the teacher's text"
    assert (to_rejected > 0).all(), "less of the student's"
    half = [x.detach().bfloat16() for x in (chosen, rejected, *rest)]
    found, _ = PAIRS[name](Pairs(*half), {"beta": 0.5})
    exact, _ = PAIRS[name](Pairs(*(x.double() for x in half)), {"beta": 0.5})
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_equal_student_and_teacher_have_margin_zero():
    chosen, rejected, _, _, *lengths = pairs()
    for name in ("dpkd", "dpkd-token"):
        loss, statistics = PAIRS[name](Pairs(chosen, rejected, chosen, rejected, *lengths), {"beta": 0.5})
        assert (statistics["margin"] == 0).all()
        torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)))


def test_a_clipped_pair_pulls_no_more_but_keeps_its_anchor():
    values = [torch.tensor([value], dtype=torch.float64) for value in (-5.0, -90.0, -20.0, -20.0, 10.0, 10.0)]
    values[0].requires_grad_()
    values[1].requires_grad_()
    loss, statistics = PAIRS["dpkd-guarded"](
        Pairs(*values), {"beta": 1.0, "clip": 2.0, "anchor": 0.3, "floor": 0.0}
    )
    to_chosen, to_rejected = torch.autograd.grad(loss.sum(), values[:2])
    assert float(statistics["clipped"]) == 1.0
    assert float(to_rejected) == 0.0
    assert float(to_chosen) == pytest.approx(-0.3 / 10)
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(-2.0)) + 0.3 * 0.5)


def test_the_floor_counts_only_what_is_missing():
    below = [torch.tensor([value]) for value in (-30.0, -20.0, -20.0, -20.0, 10.0, 10.0)]
    own = {"anchor": 0.0, "floor": 1.0, "clip": 100.0}
    found, _ = PAIRS["dpkd-guarded"](Pairs(*below), own)
    without, _ = PAIRS["dpkd-guarded"](Pairs(*below), own | {"floor": 0.0})
    assert float(found - without) == pytest.approx(1.0)
    above = [torch.tensor([-10.0]), *below[1:]]
    assert torch.equal(
        PAIRS["dpkd-guarded"](Pairs(*above), own)[0],
        PAIRS["dpkd-guarded"](Pairs(*above), own | {"floor": 0.0})[0],
    )


def collapse(name, refresh, steps=400, settings=None):
    """One categorical 'text' distribution of 40 outcomes: KL(p ; q) at the end, and what the alarm said."""
    draw = torch.Generator().manual_seed(3)
    log_p = (1.3 * torch.randn(40, generator=draw, dtype=torch.float64)).log_softmax(0)
    logits = torch.randn(40, generator=draw, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.05)
    own = {"beta": 0.1, "refresh_every": 25, "anchor": 1.0} | (settings or {})
    alarm, said, one = dpkd_guarded.Alarm(own), None, torch.ones(64, dtype=torch.float64)
    since = 0
    chosen = torch.multinomial(log_p.exp(), 64, replacement=True, generator=draw)
    rejected = torch.multinomial(logits.detach().softmax(0), 64, replacement=True, generator=draw)
    start = logits.detach().log_softmax(0)
    for _ in range(steps):
        log_q = logits.log_softmax(0)
        loss, statistics = PAIRS[name](
            Pairs(log_q[chosen], log_q[rejected], log_p[chosen], log_p[rejected], one, one), own
        )
        drift = float((log_q.detach() - start)[rejected].mean())
        said = said or alarm.check(drift, float(statistics["student_of_teacher_text"].mean()))
        since += 1
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        if refresh and dpkd_guarded.refresh_due(since, drift, own):
            start = logits.detach().log_softmax(0)
            chosen = torch.multinomial(log_p.exp(), 64, replacement=True, generator=draw)
            rejected = torch.multinomial(logits.detach().softmax(0), 64, replacement=True, generator=draw)
            since = 0
            alarm.sampled()
    log_q = logits.detach().log_softmax(0)
    return float((log_p.exp() * (log_p - log_q)).sum()), said


def test_fixed_pairs_run_away_and_the_guards_hold():
    """As the methods note measured it: without fresh pairs and without an anchor the loss has no floor."""
    fixed, said = collapse("dpkd", refresh=False)
    guarded, quiet = collapse("dpkd-guarded", refresh=True)
    assert fixed > 2.0
    assert guarded < 0.3
    assert said is not None
    assert "sample pairs more often" in said
    assert quiet is None


def test_the_alarm_waits_resumes_and_starts_anew():
    own = {"alarm_drop": 1.0, "alarm_patience": 2}
    alarm = dpkd_guarded.Alarm(own)

    def step(drift):
        return alarm.check(drift, -2.0)

    assert step(0.0) is None
    assert step(-1.5) is None
    resumed = dpkd_guarded.Alarm(own)
    resumed.load_state(alarm.state())
    alarm = resumed
    assert "has lost 1.60 nats" in step(-1.6)
    assert step(-0.9) is None, "in a row"
    assert step(-1.6) is None
    alarm.sampled()
    assert step(-1.6) is None
    assert step(float("nan")) is not None


def test_pairs_are_refreshed_by_time_or_by_drift():
    assert dpkd_guarded.refresh_due(100, 0.0, {})
    assert not dpkd_guarded.refresh_due(5, -0.5, {})
    assert not dpkd_guarded.refresh_due(5, 1.5, {})
    assert dpkd_guarded.refresh_due(5, -1.5, {})
