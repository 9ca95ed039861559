"""LoRA by peft on an MoE: attention, and experts by their parameters."""

import copy

import pytest
import torch
from tiny import tiny_llama, tiny_moe

from moesaic.errors import InputError
from moesaic.model import families
from moesaic.model.adapters import lora

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
IDS = torch.arange(5, 29).view(2, 12)


def model(tmp_path, family):
    shared, experts = (0, 4) if family == "mixtral" else (32, 8)
    return tiny_moe(tmp_path, shared=shared, experts=experts, family=family).model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def move(model):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("expert_rank", [None, 2])
@pytest.mark.parametrize("family", ["mixtral", "granitemoeshared", "qwen2_moe", "glm4_moe"])
def test_folded_equals_adapted_and_peft_reads_it(tmp_path, family, expert_rank):
    from peft import PeftModel

    own = model(tmp_path, family)
    base = copy.deepcopy(own)
    before, names = logits(own), list(own.state_dict())
    lora.attach(own, 4, 8.0, TARGETS, expert_rank)
    assert lora.attached(own)
    torch.testing.assert_close(logits(own), before, rtol=1e-5, atol=1e-5)
    learned = {name: p for name, p in own.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in learned)
    assert any("experts" in name for name in learned) == bool(expert_rank)
    assert lora.count(own) == sum(p.numel() for p in learned.values()) == expected(base, expert_rank)
    assert len(list(families.parts(own))) == len(list(families.parts(base)))
    move(own)
    moved = logits(own)
    assert (moved - before).abs().max() > 0.1
    lora.save(own, tmp_path / "adapter", "somewhere")
    lora.merge(own)
    assert not lora.attached(own)
    assert list(own.state_dict()) == names
    torch.testing.assert_close(logits(own), moved, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter"))), moved)


def expected(base, expert_rank):
    """r (in + out) of each matrix; an expert's are E matrices."""
    total = 0
    for name, module in base.named_modules():
        if name.rpartition(".")[2] in TARGETS:
            total += 4 * (module.in_features + module.out_features)
    for part in families.parts(base) if expert_rank else ():
        for parameter in part.experts.parameters():
            count, rows, columns = parameter.shape
            total += expert_rank * count * (rows + columns)
    return total


def test_an_expert_learns_from_its_own_tokens_alone(tmp_path):
    own = model(tmp_path, "granitemoeshared").train()
    lora.attach(own, 4, 8.0, TARGETS, 2)
    move(own)
    own(IDS, labels=IDS).loss.backward()
    found = {name: p.grad for name, p in own.named_parameters() if ".lora_" in name}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in found.values())
    assert all(grad.abs().max() > 0 for name, grad in found.items() if ".lora_A." in name)
    assert all(p.grad is None for name, p in own.named_parameters() if ".lora_" not in name)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(InputError, match=r"adapter\.expert_rank: this model has no experts"):
        lora.attach(tiny_llama(), 4, 8.0, TARGETS, 2)
    with pytest.raises(InputError, match=r"adapter\.targets: the model has no nothing_proj"):
        lora.attach(tiny_llama(), 4, 8.0, ("nothing_proj",), None)
