"""Lateralization LoRA as files and counts: budgets, saving, merging, what it may sit on, what learns (L7 of its acceptance list)."""

import copy
import json

import pytest
import torch
from lateral_model import KERNELS, TOKENS, image, logits, noisy, text, with_adapter
from tiny import tiny_llama, tiny_moe

from moesaic.errors import InputError
from moesaic.model.adapters import attach, lateral
from moesaic.model.adapters.options import Options


@pytest.mark.parametrize("kernel", KERNELS)
def test_l7_parameters_are_counted_by_the_formula(kernel):
    model, options = tiny_llama(), Options(rank=6, kernel=kernel, size=5)
    expected = 0
    extra = {"plain": 36 * 13, "depthwise": 6 * 13, "analytic": 36, "mosaic": 3 * 6 + 3 * 25}[kernel]
    for width_in, width_out in ((48, 48), (48, 16), (48, 16), (48, 48)):
        expected += 3 * (2 * 6 * (width_in + width_out) + extra)
    assert attach.planned(model, options) == expected
    attach.attach(model, options, TOKENS)
    assert attach.count(model) == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_equal_budgets_for_all_methods():
    model = tiny_llama()
    wanted = attach.planned(model, Options(rank=8, kernel="plain"))
    for method in lateral.METHODS:
        options = attach.equal_budget(model, Options(method=method, rank=8, experts=3), wanted)
        assert abs(attach.planned(model, options) - wanted) <= 0.05 * wanted
        assert options.alpha / options.rank == 2.0
    with pytest.raises(InputError, match="no rank of moe-lora"):
        attach.equal_budget(model, Options(method="moe-lora", rank=8, experts=64), wanted)


@pytest.mark.parametrize("method", lateral.METHODS)
def test_l7_saved_and_loaded_bit_for_bit(method, tmp_path):
    model = noisy(with_adapter(method=method, kernel="mosaic"))
    routes = method in ("lateral", "two-linear")
    if routes:
        with torch.no_grad():
            model.get_input_embeddings().weight[attach.row_ids(TOKENS)] += 0.1
    attach.save(model, tmp_path)
    again = tiny_llama()
    attach.load(again, tmp_path)
    first, second = attach.state(model), attach.state(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    ids = [*text(5), *image(471), *text(3)]
    assert torch.equal(logits(model, ids), logits(again, ids))
    assert all(name.startswith("base_model.model.model.layers.") for name in first)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == ("MOESAIC_EXPERTS" if method == "moe-lora" else "LORA")


def test_files_that_do_not_fit_are_refused(tmp_path):
    attach.save(noisy(with_adapter()), tmp_path)
    with pytest.raises(InputError, match="do not fit the model"):
        attach.load(tiny_llama(num_hidden_layers=2), tmp_path)
    with pytest.raises(InputError, match="extend its vocabulary"):
        attach.load(tiny_llama(vocab_size=450), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="damaged or missing"):
        attach.load(tiny_llama(), tmp_path)
    with pytest.raises(InputError, match="not there"):
        attach.load(tiny_llama(), tmp_path / "nowhere")


def test_merging_is_refused_with_the_reason_but_for_a_shared_lora():
    for method in ("lateral", "two-linear", "moe-lora"):
        with pytest.raises(
            InputError, match="cannot be merged: each layer has one update for text and another"
        ):
            attach.merge(noisy(with_adapter(method=method)))
    model = noisy(with_adapter(method="shared-linear"))
    ids = text(9)
    before = logits(model, ids)
    attach.merge(model)
    assert not attach.adapted(model)
    assert torch.allclose(logits(model, ids), before, atol=1e-4)


def test_never_inside_an_expert(tmp_path):
    with pytest.raises(InputError, match="a routed expert gets them scattered"):
        Options(targets=("q_proj", "up_proj"))
    model = tiny_moe(tmp_path).model
    ids = [*text(5), *image(471)]
    base = logits(model, ids)
    names = {name for name, module in model.named_modules() if isinstance(module, lateral.Adapted)}
    assert not names
    with_adapter(model)
    names = {name for name, module in model.named_modules() if isinstance(module, lateral.Adapted)}
    assert len(names) == 12
    assert all("self_attn." in name for name in names)
    assert torch.equal(logits(model, ids), base)
    noisy(model)
    assert not torch.allclose(logits(model, ids), base)
    attach.detach(model)
    assert torch.equal(logits(model, ids), base)


def test_only_image_rows_of_the_embeddings_learn():
    for tied in (True, False):
        model = with_adapter(tiny_llama(tie_word_embeddings=tied))
        attach.train_rows(model, TOKENS)
        weights = {
            id(w): w for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
        }
        before = [w.detach().clone() for w in weights.values()]
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.0
        )
        ids = torch.tensor([[*text(5), *image(471)]])
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        rows = torch.zeros(512, dtype=torch.bool)
        rows[attach.row_ids(TOKENS)] = True
        assert len(weights) == (1 if tied else 2)
        for old, new in zip(before, weights.values(), strict=True):
            assert torch.equal(new[~rows], old[~rows])
            assert not torch.equal(new[rows], old[rows])


def test_a_frozen_text_branch_leaves_text_to_the_base():
    base = tiny_llama()
    options = Options(rank=4, freeze_text=True)
    ids, pictured = text(9), [*text(3), *image(471), *text(4)]
    before, before_pictured = logits(base, ids), logits(base, pictured)
    attach.attach(base, options, TOKENS)
    learned = {name for name, p in base.named_parameters() if p.requires_grad}
    assert learned
    assert all(".lora_image_" in name for name in learned)
    assert attach.count(base) == attach.planned(tiny_llama(), options)
    assert attach.count(base) == sum(p.numel() for p in base.parameters() if p.requires_grad)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name in learned:
                parameter.add_(0.1)
    assert torch.equal(logits(base, ids), before)
    assert not torch.allclose(logits(base, pictured), before_pictured)
    with pytest.raises(InputError, match="shared-linear has no branch of its own for text"):
        Options(method="shared-linear", freeze_text=True)


def test_a_copy_of_the_model_is_its_own():
    model = noisy(with_adapter())
    twin = copy.deepcopy(model)
    ids = [*text(5), *image(471), *text(3)]
    expected = logits(model, ids)
    logits(model, text(4))
    assert torch.equal(logits(twin, ids), expected)
    attach.detach(model)
    assert torch.equal(logits(twin, ids), expected)
