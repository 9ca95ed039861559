"""Routers under shifted text, lost experts and other numbers of experts, against brute force."""

import math

import numpy as np
import pytest
import torch
from reliability_inputs import TOK

from moesaic.evaluate.reliability import moe, suite
from moesaic.flow import files
from moesaic.model import families


def build(kind):
    import transformers

    torch.manual_seed(0)
    base = {
        "vocab_size": 512, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts_per_tok": 2, "initializer_range": 0.2,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**base, num_local_experts=4, sliding_window=None)
        ).eval()
    if kind == "granite":
        return transformers.GraniteMoeSharedForCausalLM(
            transformers.GraniteMoeSharedConfig(**base, num_local_experts=4, shared_intermediate_size=16)
        ).eval()
    if kind == "qwen2":
        return transformers.Qwen2MoeForCausalLM(
            transformers.Qwen2MoeConfig(
                **base,
                num_experts=4,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
                norm_topk_prob=True,
            )
        ).eval()
    made = transformers.Glm4MoeForCausalLM(
        transformers.Glm4MoeConfig(
            **base,
            n_routed_experts=4,
            moe_intermediate_size=16,
            n_shared_experts=1,
            first_k_dense_replace=0,
            n_group=1,
            topk_group=1,
            norm_topk_prob=True,
            routed_scaling_factor=1.0,
            use_qk_norm=False,
            num_mtp_layers=0,
            head_dim=8,
        )
    ).eval()
    with torch.no_grad():
        for part in families.parts(made):
            part.router.weight.normal_(0, 0.3)
            part.router.e_score_correction_bias.uniform_(-0.2, 0.2)
    return made


KINDS = ["mixtral", "granite", "qwen2", "glm4"]


TEXTS = ["def one(x):", "return the largest number of the two", "import os", "class Thing: pass  # no more"]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_in_a_batch_are_as_each_alone(kind):
    model = build(kind)
    whole = moe.measure(model, TOK, TEXTS, 4)
    alone = [moe.measure(model, TOK, [text], 1) for text in TEXTS]
    np.testing.assert_allclose(whole.nats_N, [group.nats_N[0] for group in alone], rtol=1e-5)
    assert (whole.slots_NLE == np.concatenate([group.slots_NLE for group in alone])).all()
    ids = [1, *TOK(TEXTS[1])["input_ids"]]
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert whole.nats_N[1] == pytest.approx(float(loss) * (len(ids) - 1), rel=1e-5)
    assert whole.slots_NLE[1].sum(-1).tolist() == [2 * len(ids)] * 2


def test_a_dense_model_has_no_slots(model):
    assert moe.measure(model, TOK, TEXTS, 2).slots_NLE is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expert", [0, 3])
def test_a_lost_expert_is_as_if_the_router_did_not_know_it(kind, expert):
    model = build(kind)
    ids = torch.randint(3, 512, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with moe.without(model, expert), families.Routing(model) as recorded:
            lost = model(input_ids=ids).logits
            chosen = torch.cat([recorded.indices[i].flatten() for i in range(2)])
        assert not (chosen == expert).any()
        assert (lost - before).abs().max() > 1e-3
        assert torch.equal(model(input_ids=ids).logits, before)
        # Brute force: the choice and the weights from logits in which the expert is impossible.
        hooks = []
        for part in families.parts(model):
            if kind == "glm4":
                part.router.e_score_correction_bias[expert] = -1e9
                continue

            def hook(router, _inputs, output):
                logits = output[0].float().clone()
                logits[:, expert] = float("-inf")
                top, index = logits.topk(2, dim=-1)
                return output[0], top.softmax(-1).to(output[1].dtype), index

            hooks.append(part.router.register_forward_hook(hook))
        wanted = model(input_ids=ids).logits
        for item in hooks:
            item.remove()
    torch.testing.assert_close(lost, wanted, rtol=1e-4, atol=1e-5)


def test_with_all_experts_running_a_lost_one_counts_nothing():
    model = build("mixtral")
    families.set_per_token(model, 4)
    with moe.without(model, 1), families.Routing(model) as recorded, torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]))
    assert (recorded.weights[0][recorded.indices[0] == 1] == 0).all()


def test_numbers_of_experts_are_restored():
    model = build("granite")
    assert moe.counts(model) == [1, 3, 4]
    with moe.running(model, 3):
        assert {part.router.top_k for part in families.parts(model)} == {3}
    assert {part.router.top_k for part in families.parts(model)} == {2}
    assert model.config.num_experts_per_tok == 2


def test_the_whole_on_an_moe_and_on_its_parent(model, source):
    texts = suite.texts(source)
    assert list(texts) == ["plain", "typos", "capitals", "shakespeare", "bible", "tweet"]
    made = build("granite")
    whole = moe.run(made, TOK, texts, 4, 100, 0)
    rows = {(task, metric): (estimate, chance) for task, metric, estimate, chance in whole.rows}
    drift, floor = rows["shift/capitals", "drift"]
    assert 0 <= drift.low <= drift.value <= 1
    assert floor < drift.value
    assert ("shift/plain", "drift") not in rows
    assert len(whole.details["experts"]) == 4
    worst, _ = rows["stress/expert", "rise_worst"]
    assert worst.n == len(texts["plain"])
    assert worst.low <= worst.value <= worst.high
    assert rows["stress/expert", "rise_mean"][0].value == pytest.approx(
        np.mean(whole.details["experts"]), abs=1e-6
    )
    assert sorted(whole.details["per_token"]) == ["1", "3", "4"]
    with moe.running(made, 1):
        one = moe.measure(made, TOK, texts["plain"], 4)
    own = whole.groups["plain"]
    rise = (one.nats_N.sum() - own.nats_N.sum()) / math.log(2) / own.bytes_N.sum()
    assert rows["stress/per_token_1", "rise"][0].value == pytest.approx(rise)
    parent = moe.run(model, TOK, texts, 4, 100, 0)
    assert {metric for _, metric, _, _ in parent.rows} == {"bits_per_byte"}
    assert parent.groups["plain"].keys == own.keys
    files.write_json(source.folder / "details.json", whole.details)  # plain numbers only
