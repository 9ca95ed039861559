"""The memory that a stage is planned to take: what autograd keeps, and what follows from the settings."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_llama, tiny_moe

from moesaic.schema import Pretrain
from moesaic.train import memory
from moesaic.train.engine import build
from moesaic.train.objectives import Trainee, Weights


def test_what_autograd_keeps_is_counted(tmp_path):
    """Per token and layer, on another number of tokens and layers than the planner looks at."""
    model = tiny_moe(tmp_path, tiny_llama(num_hidden_layers=5), shared=32).model
    per_token, fixed = memory.saved_bytes(model.config, type(model), mixed=False)
    build(Trainee(model.train(), Weights()), Pretrain(steps=1).model_dump(mode="json"))
    kept: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.base_model(input_ids=torch.arange(96)[None], use_cache=False).last_hidden_state
    assert sum(kept.values()) / 96 == pytest.approx(5 * per_token + fixed, rel=0.1)
    assert out.requires_grad


def test_memory_follows_the_settings(tmp_path):
    model = tiny_moe(tmp_path, shared=32).model

    def planned(ranks=1, **settings):
        own = Pretrain(**{"batch": 8, "micro_batch": 4, **settings}).model_dump(mode="json")
        if own["engine"]["kind"] == "deepspeed":
            own["engine"]["json"] = {"zero_optimization": {"stage": int(own["engine"]["deepspeed"][4])}}
        return memory.memory(
            own, model, model if own["teacher"] else None, 64, ranks, mixed=False, base_gb=0.0
        )

    plain = planned()
    assert plain["weights"] * 2 == pytest.approx(plain["optimizer"])
    assert planned(micro_batch=2)["activations"] == pytest.approx(plain["activations"] / 2)
    assert planned(engine={"gradient_checkpointing": True})["activations"] < plain["activations"] / 2
    assert planned(optimizer={"freeze_embeddings": True})["gradients"] < plain["gradients"]
    for stage in (1, 2, 3):
        found = planned(4, engine={"kind": "deepspeed", "deepspeed": f"zero{stage}.json"})
        for name, since in (("optimizer", 1), ("gradients", 2), ("weights", 3)):
            assert found[name] == pytest.approx(plain[name] / (4 if stage >= since else 1)), (stage, name)
    assert planned()["teacher"] == 0
    assert planned(teacher="dense")["teacher"] == plain["weights"]


def test_deepspeed_on_a_gpu_holds_bfloat16_weights_and_float32_states(tmp_path):
    model = tiny_moe(tmp_path, shared=32).model
    count = sum(p.numel() for p in model.parameters())

    def planned(template):
        own = Pretrain(batch=8, micro_batch=4, engine={"kind": "deepspeed"}).model_dump(mode="json")
        own["engine"]["json"] = json.loads(Path(f"config/deepspeed/{template}.json").read_text())
        return memory.memory(own, model, None, 64, ranks=2, mixed=True, base_gb=0.0)

    for template, expected in (
        ("zero1", (2, 2, 6)), ("zero2", (2, 1, 6)), ("zero3", (1, 1, 6)), ("zero2-offload", (2, 1, 0)), ("zero3-offload", (0, 1, 0)),
    ):  # fmt: skip
        found = planned(template)
        each = tuple(found[name] * 1e9 / count for name in ("weights", "gradients", "optimizer"))
        assert each == pytest.approx(expected, rel=0.01), template


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "lora", "rank": 4},
        {"method": "lora", "rank": 4, "expert_rank": 2},
        {"method": "lateral", "rank": 4},
    ],
)
def test_an_adapter_needs_states_for_what_it_learns(tmp_path, adapter):
    from moesaic.schema import Tune
    from moesaic.train import adapt

    settings = Tune(steps=1, batch=4, optimizer={"weight_decay": 0.0}, adapter=adapter).model_dump(
        mode="json"
    )
    model = tiny_moe(tmp_path, shared=32).model
    with torch.device("meta"):
        bare = type(model)(model.config)
    planned = adapt.planned(bare, settings["adapter"])
    count = sum(p.numel() for p in planned.parameters() if p.requires_grad)
    if adapter["method"] == "lora":
        adapt.begin(model, settings, None, 0)
        assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert not any(".lora_" in name for name, _ in bare.named_parameters()), "the plan's own model stays"
    full = memory.memory(settings | {"adapter": None}, bare, None, 64, 1, mixed=False)
    found = memory.memory(settings, planned, None, 64, 1, mixed=False)
    assert found["optimizer"] * 1e9 == pytest.approx(2 * 4 * count)
    assert found["gradients"] * 1e9 == pytest.approx(4 * count)
    assert found["optimizer"] < 0.3 * full["optimizer"]
    assert found["weights"] * 1e9 == pytest.approx(full["weights"] * 1e9 + 4 * count)


def test_layers_left_dense_do_not_change_what_an_moe_layer_keeps():
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    def kept(dense_layers):
        shape = {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 4,
            "num_experts": 4,
        }
        widths = {
            "intermediate_size": 96,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 16,
            "vocab_size": 64,
        }
        own = Qwen2MoeConfig(**shape, **widths, num_experts_per_tok=2, mlp_only_layers=dense_layers)
        return memory.saved_bytes(own, Qwen2MoeForCausalLM, mixed=False)

    assert kept([0, 1]) == kept([]) == kept([3])
