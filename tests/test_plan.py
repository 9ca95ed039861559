"""The planner: published counts, memory that follows the settings, clear refusals."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_llama, tiny_moe

from moesaic import config, plan, plan_page, plan_parent, plan_sampling
from moesaic.errors import InputError
from moesaic.flow import manifest, paths
from moesaic.flow.step import STEPS
from moesaic.model import families
from moesaic.settings import step_settings
from moesaic.train import memory

ROOT = Path(__file__).parents[1]
MACHINE = plan.Hardware("A100", 112, 0.3, 1.5)


@pytest.mark.parametrize(("name", "active"), [("4of16", "3.49B"), ("2of8", "3.49B"), ("2of16", "2.95B")])
def test_llama_moe_has_the_published_sizes(name, active, monkeypatch):
    monkeypatch.setattr(
        memory, "saved_bytes", lambda *_: (1e5, 1e4)
    )  # counting a 7B layer takes half a minute
    loaded = config.load(ROOT / "config" / "recipes" / f"llama-moe-3.5b-{name}.yaml")
    plans = plan.make(loaded, MACHINE)
    page = plan_page.text(plans, MACHINE)
    assert f"6.74B total, {active} active for a token; dense parent 6.74B" in page
    assert "in 13,623 steps of 14,680,064" in page
    assert all(item.stages[0].tokens == pytest.approx(200e9, rel=1e-3) for item in plans)
    assert "MORE THAN" not in page


def test_flops_are_six_a_weight_and_the_attention(tmp_path):
    model = tiny_moe(tmp_path, shared=32).model
    weights = sum(p.numel() for p in model.parameters())
    idle = sum(p.numel() for part in families.parts(model) for p in part.experts.parameters())
    active = weights - idle // 2  # 2 of 4 experts
    scores = 3 * 2 * 2 * 3 * 48 * 100 / 2
    assert plan.flops_per_token(model, 100, training=True) == pytest.approx(6 * active + scores)


def test_disk_of_the_construction_is_planned(nothing_done):
    """4 bytes x tokens x width x (layers + 1) where something is fitted, nothing of that for a split by chance."""
    changes = {"stages": ["construct"], "experts": {"calibration": {"tokens": 100_000}}}
    chance = {"experts": {"split": "random", "router": "random", "reconstruct": "none"}}
    fitted, random = planned(changes), planned(config.merge(changes, chance))
    assert fitted.disk.trace == 4 * 100_000 * 64 * 3
    assert random.disk.trace == 0
    assert fitted.disk.stream == random.disk.stream == 2 * 4 * 100_000 * 64
    assert fitted.disk.model == 2 * 4 * fitted.moe.total
    page = plan_page.text([fitted], MACHINE)
    assert (
        "on disk     0.1 GB while it lasts (0.0 twice the model, 0.1 hidden states of the parent's layers"
        in page
    )
    assert "of the parent's layers" not in plan_page.text([random], MACHINE)


def test_what_cannot_be_planned_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--gpu: K80 is not known"):
        plan.Hardware("K80")
    raw = {
        "model": {"at": {"kind": "gguf", "path": "x.gguf"}}, "variants": {"a": {}},
        "data": {"domains": {"d": {"sources": [{"at": {"kind": "files", "path": "d"}}]}}}, "stages": ["construct", "pretrain"],
    }  # fmt: skip
    with pytest.raises(InputError, match="run the dense step first"):
        plan.make(config.check(raw), MACHINE)
    raw["pretrain"] = {"engine": {"kind": "deepspeed", "deepspeed": "nowhere.json"}}
    with pytest.raises(InputError, match=r"pretrain\.engine\.deepspeed: nowhere\.json: no such file"):
        step_settings(config.check(raw), "pretrain", "a")


def test_an_offline_teacher_takes_disk_instead_of_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    raw = {
        "model": {"at": {"kind": "gguf", "path": "x.gguf"}, "shape": shape},
        "experts": {"shared": 0, "experts": 4, "per_token": 2},
        "stages": ["construct", "pretrain"],
        "pretrain": {"teacher": "dense", "steps": 10, "batch": 8, "offline": {"top": 64, "tail": 16}},
        "variants": {"a": {}},
        "data": {"block": 512, "domains": {"d": {"sources": [{"at": {"kind": "files", "path": "d"}}]}}},
    }
    offline, resident = (
        plan.make(config.check(config.merge(raw, {"pretrain": changes})), MACHINE)[0]
        for changes in ({}, {"offline": None})
    )
    page = plan_page.text([offline], MACHINE)
    # 80 tokens of 2 + 2 bytes, the rest and the text's own token
    assert "teacher cache of pretrain" in page
    assert "324 bytes per token before compression (64 likeliest, 16 drawn) = 0.01 GB for as many" in page
    assert resident.caches == []
    assert (
        0
        < offline.caches[0].flops
        < resident.stages[0].flops - offline.stages[0].flops + 1e-3 * resident.stages[0].flops
    )
    assert "of the teacher's forward pass" in page
    assert offline.stages[0].memory_gb["teacher"] == 0 < resident.stages[0].memory_gb["teacher"]
    assert offline.stages[0].flops < resident.stages[0].flops


SMALL = {
    "model": {
        "at": {"kind": "gguf", "path": "x.gguf"},
        "shape": {
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    },
    "experts": {"shared": 0, "experts": 4, "per_token": 2},
    "variants": {"a": {}},
    "data": {
        "temporal": {"train": 10, "tasks": ["year_shift", "duration_facts"], "forms": ["choice"]},
        "domains": {"d": {"sources": [{"at": {"kind": "files", "path": "d"}}]}},
        "chat": {"max_tokens": 300, "sources": [{"name": name, "at": {"kind": "files", "path": "c"}} for name in "xy"]},
    },
}  # fmt: skip


def planned(changes):
    (found,) = plan.make(config.check(config.merge(SMALL, changes)), MACHINE)
    return found


@pytest.fixture
def nothing_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_distillation_on_samples_is_planned(nothing_done):
    own = {
        "data": "samples", "loss": "dpkd", "teacher": "dense", "rounds": 3, "steps": 5, "batch": 4, "micro_batch": 4, "student": {"per_token": 1},
        "samples": {"prompts": 20, "answers": 2, "max_prompt": 40, "new_tokens": 60, "batch": 8},
    }  # fmt: skip
    found = planned({"stages": ["construct", "distill"], "distill": own})
    (stage,) = found.stages
    theirs, mine, scores = stage.sampling
    assert (theirs.total, mine.total, scores.total) == (80, 240, 240), (
        "two sources of 20 questions, 2 answers each"
    )
    assert theirs.tokens_each == mine.tokens_each == 100
    assert theirs.flops_each > mine.flops_each, "the student runs one expert of four"
    # keys and values: 2 layers, 2 heads of 16, 2 bytes, 8 sequences of 100 tokens
    assert theirs.memory_gb["cache"] * 1e9 == 2 * 2 * 2 * 16 * 2 * 8 * 100
    assert stage.tokens == 3 * 5 * 4 * 2 * 100
    assert stage.memory_gb["teacher"] == 0, "pairs need no teacher in memory"
    page = plan_page.text([found], MACHINE)
    assert "80 x" not in page
    assert "40 questions x 2 x 3 rounds = 240" in page
    text = planned({"stages": ["construct", "distill"], "distill": own | {"loss": "kd", "rounds": 1}}).stages[
        0
    ]
    assert [item.name for item in text.sampling] == ["teacher's answers"]
    assert text.memory_gb["teacher"] > 0
    assert text.tokens == 5 * 4 * 100
    unknown = planned({"stages": ["construct", "distill"], "distill": own | {"samples": {"max_prompt": 40}}})
    assert "to each question, of which the data say how many" in plan_page.text([unknown], MACHINE)
    chat = planned(
        {
            "stages": ["construct", "distill"],
            "distill": {"teacher": "moe", "steps": 5, "student": {"per_token": 1}},
        }
    )
    assert chat.stages[0].sampling == []
    assert chat.stages[0].tokens == 5 * 8 * 300
    assert chat.stages[0].memory_gb["teacher"] > 0
    thin = {"of": "dense", "ffn": 48, "drop_layers": [1], "per_token": None}
    narrow = planned({"stages": ["construct", "distill"], "distill": own | {"student": thin}}).stages[0]
    # embeddings and head, one layer's attention, 48 neurons and three norms, in float32
    assert narrow.memory_gb["weights"] * 1e9 == 4 * (2 * 512 * 64 + 12288 + 3 * 64 * 48 + 3 * 64)


def test_preference_tuning_is_planned(nothing_done):
    own = {
        "rounds": 2, "epochs": 3, "batch": 4, "items": 6, "kinds": ["math-time"], "score_batch": 4,
        "sampling": {"answers": 5, "max_prompt": 40, "new_tokens": 60}, "rubric": {"ratings": 3, "new_tokens": 20},
    }  # fmt: skip
    (stage,) = planned({"stages": ["construct", "preference"], "preference": own}).stages
    answers, ratings, scores = stage.sampling
    assert answers.total == 6 * 5 * 2, "6 items of the one task of this kind"
    assert ratings.total == 3 * answers.total
    assert ratings.tokens_each == 120, "the critic reads question and answer"
    assert scores.total == 6 * 2 * 2
    assert stage.steps == 2 * 5, "3 epochs of at most 6 pairs in batches of 4"
    assert stage.tokens == 10 * 4 * 2 * 100
    expected = own | {"rubric": {"read": "expected", "batch": 9}}
    (read,) = planned({"stages": ["construct", "preference"], "preference": expected}).stages
    assert read.sampling[-1].total == 6 * (2 + 5) * 2, "the scores of an answer share a pass"
    assert read.sampling[-1].memory_gb["activations"] == scores.memory_gb["activations"] * 9 / 4
    assert (
        planned({"stages": ["construct", "preference"], "preference": own | {"pairs": "verifier"}})
        .stages[0]
        .sampling[-1]
        .total
        == 6 * 7 * 2
    )


def test_the_arms_of_the_picture_recipe_are_of_one_size():
    from transformers import AutoModelForCausalLM, LlamaConfig

    from moesaic.train import adapt

    loaded = config.load(ROOT / "config" / "recipes" / "lateral.yaml")
    shape = LlamaConfig(
        hidden_size=576, intermediate_size=64, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=64
    )  # fmt: skip
    counts = {}
    for variant in loaded.variants:
        own = step_settings(loaded, "tune", variant)["tune"]["adapter"]
        with torch.device("meta"):
            parent = AutoModelForCausalLM.from_config(shape)
        counts[variant] = sum(p.numel() for p in adapt.planned(parent, own).parameters() if p.requires_grad)
    assert len(counts) == 5
    sizes = [count for variant, count in counts.items() if variant != "frozen-text"]
    assert max(sizes) <= 1.06 * min(sizes), counts


def test_the_default_plans_before_anything_ran(tmp_path, monkeypatch):
    """Its parent's shape comes from the package's GGUF file."""
    path = ROOT / "config" / "config.yaml"
    monkeypatch.chdir(tmp_path)
    first, *_ = plan.make(config.load(path), MACHINE)
    assert (first.dense.total, first.architecture) == (134_515_008, "Glm4MoeForCausalLM")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("recipe", "gpus"), [("llama-moe-3.5b-4of16", 112), ("timo", 8)])
def test_recipes_of_large_models_fit_the_gpus_they_are_for(monkeypatch, recipe, gpus):
    monkeypatch.chdir(ROOT)
    # the largest that was counted of these models' layers; counting again takes gigabytes
    monkeypatch.setattr(memory, "saved_bytes", lambda *_: (241006.0, 1036.0))
    machine = plan.Hardware("A100", gpus)
    found = plan.make(config.load(f"config/recipes/{recipe}.yaml"), machine)
    assert found
    for item in found:
        for one in item.stages:
            needed = [one.memory_gb["total"], *(part.memory_gb["total"] for part in one.sampling)]
            assert max(needed) < plan.GPU_MEMORY_GB[machine.gpu], (item.variant, one.name, needed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_parent_is_planned_in_the_dtype_that_it_will_have(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    tiny_llama().to(torch.float16).save_pretrained(tmp_path / "parent")
    raw = {
        "model": {"at": {"kind": "folder", "path": "parent"}, "dtype": dtype}, "variants": {"a": {}}, "stages": ["construct"],
        "data": {"domains": {"d": {"sources": [{"at": {"kind": "files", "path": "d"}}]}}},
    }  # fmt: skip
    assert str(plan_parent.shape(config.check(raw)).dtype) == f"torch.{dtype}"
    raw["model"]["shape"] = {
        "hidden_size": 64,
        "rms_norm_eps": "1e-05",
        "dtype": "bfloat16",
        "num_attention_heads": 4,
    }
    found = plan_parent.shape(config.check(raw))
    assert (found.rms_norm_eps, str(found.dtype)) == (1e-5, f"torch.{dtype}")


def test_only_what_this_configuration_made_is_counted(tmp_path, monkeypatch):
    """There may be results of another one in the folder."""
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained(tmp_path / "parent")
    mine = config.check(SMALL | {"model": {"at": {"kind": "folder", "path": "parent"}}})
    other = config.check(
        config.merge(
            SMALL,
            {"model": {"dtype": "bfloat16"}, "data": {"chat": {"max_tokens": 9}, "temporal": {"train": 9}}},
        )
    )
    for step, metrics in (
        ("dense", {}),
        ("chat", {"conversations": {"train": 7}}),
        ("temporal", {"items": {"train": 3}}),
    ):
        folder = paths.folder(step)
        tiny_llama(hidden_size=24).config.save_pretrained(folder / "model")
        manifest.write(folder, step, STEPS[step].version, step_settings(other, step), {}, ["model"], metrics)
    asked = [plan_sampling.instruction_questions, plan_sampling.temporal_questions]
    assert plan_parent.shape(mine).hidden_size == 48
    assert [count(mine) for count in asked] == [None, 20]
    assert [count(other) for count in asked] == [7, 3]
    manifest.write(
        paths.folder("dense"),
        "dense",
        STEPS["dense"].version,
        step_settings(mine, "dense"),
        {},
        ["model"],
        {},
    )
    assert plan_parent.shape(mine).hidden_size == 24


def test_a_batch_that_the_gpus_cannot_share_is_said(nothing_done):
    own = {"stages": ["construct", "tune"], "tune": {"steps": 5, "batch": 8, "micro_batch": 4}}
    found = {}
    for gpus in (1, 2, 8):
        machine = plan.Hardware("A100", gpus)
        found[gpus] = plan_page.text(plan.make(config.check(config.merge(SMALL, own)), machine), machine)
    assert "8 does not divide by 8 GPUs x micro_batch 4" in found[8]
    assert not any("does not divide" in found[gpus] for gpus in (1, 2))


@pytest.mark.parametrize("wrong", [{"gpus": 0}, {"mfu": 0.0}, {"gpus": -1}])
def test_no_machine_is_refused(wrong):
    with pytest.raises(InputError, match="is not above 0"):
        plan.Hardware(**wrong)


def test_stages_after_new_layers_are_planned_with_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained(tmp_path / "parent")
    raw = {
        "model": {"at": {"kind": "folder", "path": "parent"}}, "variants": {"a": {}}, "stages": ["construct", "tune", "distill"],
        "data": {
            "domains": {"d": {"sources": [{"at": {"kind": "files", "path": "d"}}]}},
            "chat": {"sources": [{"name": "c", "at": {"kind": "files", "path": "c"}}]},
        },
        "experts": {"experts": 4, "per_token": 2},
    }  # fmt: skip
    plain = {stage.name: stage.flops for stage in plan.make(config.check(raw), MACHINE)[0].stages}
    deep = config.check(config.merge(raw, {"tune": {"depth": {"expand": {"every": 1}}}}))
    found = {stage.name: stage.flops for stage in plan.make(deep, MACHINE)[0].stages}
    assert found["tune"] > 1.3 * plain["tune"]
    assert found["distill"] > 1.3 * plain["distill"]
