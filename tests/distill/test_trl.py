"""`dpkd` is DPO with the teacher as reference under length normalisation: loss and gradient of TRL's own trainer on the same pairs."""

import pytest
import torch
from tiny import tiny_llama

from moesaic.distill import pairs as student_pairs
from moesaic.generate import score
from moesaic.train import pairs
from moesaic.train.objectives import Weights

pytestmark = pytest.mark.slow  # TRL takes half a minute to import
BETA = 0.7
RECORDS: list[dict[str, list[int]]] = [
    {"prompt": [1, 30, 31], "chosen": [40, 41, 42, 2], "rejected": [50, 2]},
    {"prompt": [1, 60], "chosen": [61, 2], "rejected": [62, 63, 64, 65, 66]},
    {"prompt": [1, 9, 8, 7, 6], "chosen": [70, 71, 72, 2], "rejected": [73, 74, 75, 2]},
]


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    """TRL's DPOTrainer with `sigmoid_norm`, the teacher as its reference model."""
    import project
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = project.tokenizer_of_library()
    data = Dataset.from_list(
        [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3
    )  # asked for by its constructor
    own = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), loss_type=["sigmoid_norm"], beta=BETA, use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    return DPOTrainer(
        model=tiny_llama(seed=0),
        ref_model=tiny_llama(seed=7),
        args=own,
        train_dataset=data,
        processing_class=tokenizer,
    )


def ours(student, teacher, normalised=True):
    """Loss and its gradient in the student, through the workflow's own scoring and trainee."""
    listed = [
        score.Scored(f"{i}{side}", item["prompt"], item[side])
        for i, item in enumerate(RECORDS)
        for side in ("chosen", "rejected")
    ]
    logps = score.log_probabilities(teacher, listed)
    rows = [
        student_pairs.SampledRow(
            pairs.answer_row(item["prompt"], item["chosen"]),
            pairs.answer_row(item["prompt"], item["rejected"]),
            (logps[2 * i], logps[2 * i + 1]),
            0.0,
        )
        for i, item in enumerate(RECORDS)
    ]
    options = {"beta": BETA, "length_normalised": normalised, "corpus": 0.0}
    trainee = student_pairs.PairStudent(student, Weights(), "dpkd", options)
    batch = student_pairs.collate(rows, ["a"] * 3, 3, 1.0, torch.device("cpu"))
    loss, _ = trainee(batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in student.named_parameters()}


def test_loss_and_gradient_are_those_of_trl(trl_trainer):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=0)
    given = collate(
        [
            {"prompt_ids": r["prompt"], "chosen_ids": r["chosen"], "rejected_ids": r["rejected"]}
            for r in RECORDS
        ]
    )
    model = trl_trainer.model
    model.train()
    theirs = trl_trainer.compute_loss(model, given)
    model.zero_grad()
    theirs.backward()
    loss, gradients = ours(tiny_llama(seed=0), tiny_llama(seed=7))
    assert float(loss) == pytest.approx(float(theirs.detach()), rel=1e-5)
    checked = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)
            checked += 1
    assert checked == len(gradients)
    # The check can fail: without length normalisation (eq. 8) it is another loss.
    summed, _ = ours(tiny_llama(seed=0), tiny_llama(seed=7), normalised=False)
    assert float(summed) != pytest.approx(float(theirs.detach()), rel=1e-2)
