"""The trainer around the losses: mask and length, balance loss of MoE students, student text, telemetry, temperature."""

import copy
import dataclasses

import pytest
import torch
from offline import cached
from tiny import tiny_llama, tiny_moe

from moesaic.distill.losses import METHODS
from moesaic.train.objectives import IGNORE, TELEMETRY, Batch, Trainee, Weights


def batch(rows=3, length=14, seed=0):
    ids = torch.randint(3, 512, (rows, length), generator=torch.Generator().manual_seed(seed))
    targets = torch.cat([ids[:, 1:], torch.full((rows, 1), IGNORE)], dim=1)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    targets[0, 8:] = IGNORE
    targets[1, :5] = IGNORE  # a prompt
    return Batch(ids, targets, mask, ["a", "b", "a"][:rows], int((targets != IGNORE).sum()), 1.0)


@pytest.fixture
def pair():
    return tiny_llama(seed=0), tiny_llama(seed=7)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_one_mask_and_length_convention(pair, name):
    """The loss of a batch is that of its rows alone, weighted by their targets; what is masked does not count."""
    student, teacher = pair
    given = batch()
    trainee = Trainee(student, Weights(kl=0.6, loss=name, student_text=("b",)), teacher)
    loss, statistics = trainee(given)
    total = 0.0
    for row in range(3):
        part = dataclasses.replace(
            given,
            ids_BT=given.ids_BT[row : row + 1],
            targets_BT=given.targets_BT[row : row + 1],
            mask_BT=given.mask_BT[row : row + 1],
            domains=given.domains[row : row + 1],
        )
        alone, own = trainee(part)
        total += float(alone.detach())
        assert float(own["distill_B"][0]) == pytest.approx(float(statistics["distill_B"][row]), rel=1e-4)
    assert total == pytest.approx(float(loss.detach()), rel=1e-4)
    mixed = 0.4 * statistics["nll_B"].sum() + 0.6 * statistics["distill_B"].sum()
    assert float(mixed) / given.step_targets == pytest.approx(float(loss.detach()), rel=1e-4)
    noise = given.ids_BT.clone()
    noise[0, 9:] = 5
    changed, _ = trainee(dataclasses.replace(given, ids_BT=noise))
    assert float(changed.detach()) == pytest.approx(float(loss.detach()), rel=1e-4)


@pytest.mark.parametrize("name", ["kd", "jsd", "cald", "sft"])
def test_moe_students_keep_their_balance_loss(tmp_path, name):
    moe = tiny_moe(tmp_path, shared=32).model
    teacher = tiny_llama(seed=7)
    without, statistics = Trainee(moe, Weights(kl=1.0, loss=name), teacher)(batch())
    with_it, _ = Trainee(moe, Weights(balance=0.5, kl=1.0, loss=name), teacher)(batch())
    assert float(statistics["balance"]) > 0
    assert float((with_it - without).detach()) == pytest.approx(0.5 * float(statistics["balance"]), rel=1e-3)


def test_student_text_is_known_by_its_domain(pair):
    student, teacher = pair
    given = batch()

    def per_row(*own):
        return Trainee(student, Weights(kl=1.0, loss="cald", student_text=own), teacher)(given)[1][
            "distill_B"
        ]

    theirs, mine = per_row(), per_row("b")
    torch.testing.assert_close(mine[[0, 2]], theirs[[0, 2]])
    assert abs(float(mine[1] - theirs[1])) > 1e-3
    skew = {}
    for name in ("skl", "srkl"):
        skew[name] = Trainee(student, Weights(kl=1.0, loss=name), teacher)(given)[1]["distill_B"]
    torch.testing.assert_close(mine, torch.stack([skew["skl"][0], skew["srkl"][1], skew["skl"][2]]) / 2)


@pytest.mark.parametrize("name", ["sft", "seqkd"])
def test_losses_without_a_teacher_never_run_it(pair, name):
    student, teacher = pair
    calls = []
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    teacher.model.register_forward_pre_hook(lambda *_: calls.append(1))
    trainee = Trainee(student, Weights(kl=1.0, loss=name), teacher)
    loss, statistics = trainee(batch())
    assert not calls
    assert float(loss.detach()) == pytest.approx(
        float(statistics["nll_B"].sum()) / batch().step_targets, rel=1e-5
    )
    trainee.eval()
    with torch.no_grad():
        trainee(batch())
    assert calls, "telemetry asks it"


def test_telemetry_by_hand_and_from_a_cache(pair):
    student, teacher = pair
    given = batch()
    with torch.no_grad():
        log_q, log_p = (
            model(input_ids=given.ids_BT, attention_mask=given.mask_BT, use_cache=False).logits.log_softmax(
                -1
            )
            for model in pair
        )
        told = Trainee(student, Weights(kl=1.0, loss="jsd"), teacher).eval()(given)[1]
        offline = Trainee(student, Weights(kl=1.0)).eval()(cached(teacher, given, 480, 16))[1]
    where = given.targets_BT != IGNORE
    expected = (
        (log_p.exp() * (log_p - log_q)).sum(-1),
        (log_q.exp() * (log_q - log_p)).sum(-1),
        -(log_q.exp() * log_q).sum(-1),
    )
    for key, value in zip(TELEMETRY, expected, strict=True):
        by_row = (value * where).sum(1)
        torch.testing.assert_close(told[key], by_row, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(offline[key], by_row, rtol=0.02, atol=1e-2)


def test_temperature_softens_both_and_squares_the_loss(pair):
    student, teacher = pair
    given = batch()
    found = Trainee(student, Weights(kl=1.0, temperature=2.0), teacher)(given)[1]["distill_B"]
    with torch.no_grad():
        log_q, log_p = (
            (
                model(input_ids=given.ids_BT, attention_mask=given.mask_BT, use_cache=False).logits / 2
            ).log_softmax(-1)
            for model in pair
        )
    value = 4 * ((log_p.exp() * (log_p - log_q)).sum(-1) * (given.targets_BT != IGNORE)).sum(1)
    torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
    offline = Trainee(student, Weights(kl=1.0, temperature=2.0))(
        cached(teacher, given, 505, 0, temperature=2.0)
    )[1]
    torch.testing.assert_close(offline["distill_B"], value, rtol=0.01, atol=1e-2)


def test_training_moves_the_student_to_the_teacher(pair):
    """Each loss lowers forward KL on the text it trains on."""
    student, teacher = pair
    given = batch(rows=3)
    for name in ("kd", "rkl", "jsd", "akl", "skl", "srkl", "cald", "abkd"):
        trainee = Trainee(copy.deepcopy(student), Weights(kl=1.0, loss=name), teacher)
        optimizer = torch.optim.Adam(trainee.parameters(), 3e-3)

        def forward_kl(trainee=trainee):
            trainee.eval()
            with torch.no_grad():
                found = float(trainee(given)[1]["forward_kl_B"].sum())
            trainee.train()
            return found

        before = forward_kl()
        for _ in range(12):
            loss, _ = trainee(given)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert forward_kl() < 0.8 * before, name
