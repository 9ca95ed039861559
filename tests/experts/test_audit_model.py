"""The audit of a finished checkpoint agrees with the one made while it was built, and refuses what it cannot read."""

import pytest
import torch
from tiny import tiny_llama, tiny_moe, tiny_text

from moesaic.errors import InputError
from moesaic.experts import audit_model
from moesaic.model import depth
from moesaic.model.depth import skip


@pytest.mark.parametrize(
    ("family", "shared"), [("mixtral", 0), ("granitemoeshared", 32), ("qwen2_moe", 32), ("glm4_moe", 32)]
)
def test_a_checkpoint_is_audited_as_it_was_when_built(tmp_path, family, shared):
    text = tiny_text(12)
    made = tiny_moe(
        tmp_path,
        None,
        text,
        split="activation",
        router="least-squares",
        shared=shared,
        experts=8 if shared else 4,
        family=family,
    )
    found = audit_model.run(tmp_path / "moe" / "model", text.ids_NT[text.fitted :], top=0.1, seed=0)
    for own, built in zip(found["layers"], made.layers, strict=True):
        # the model's own routing in float32 and the streamed one may differ in single tokens
        assert own["load"] == pytest.approx(built["load"], abs=0.02)
        if family in (
            "mixtral",
            "granitemoeshared",
        ):  # one factor for all routed neurons does not change which are active within them
            assert own["similarity"] == pytest.approx(built["similarity"], abs=0.05)
    assert found["routing"]["imbalance"] == 0.0


def test_dense_models_and_foreign_text_are_refused(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    ids = torch.randint(0, 512, (2, 16))
    with pytest.raises(InputError, match="llama is not an MoE"):
        audit_model.run(tmp_path / "dense", ids)
    tiny_moe(tmp_path)
    with pytest.raises(InputError, match="vocabulary ends at 511"):
        audit_model.run(tmp_path / "moe" / "model", ids + 500)


@pytest.mark.parametrize(("routed", "off"), [([1], []), ([], [1])])
def test_models_that_skip_are_sent_to_fold(tmp_path, routed, off):
    model = tiny_moe(tmp_path).model
    skip.attach(model, routed, off)
    depth.save(model, tmp_path / "skipping")
    with pytest.raises(InputError, match="moesaic fold"):
        audit_model.run(tmp_path / "skipping", torch.randint(3, 512, (2, 16)))
