"""Sampling by vLLM: with vLLM itself where MOESAIC_VLLM_PYTHON names its Python, else with a stand-in in a process of its own."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from asking import Words, prompts
from tiny import tiny_llama, tiny_moe

from moesaic.errors import InputError, Interrupted
from moesaic.flow import signals
from moesaic.generate import engine_vllm, sample
from moesaic.generate.decode import Decoding
from moesaic.generate.sample import Plan

REAL = os.environ.get(engine_vllm.PYTHON)
STAND_IN = Path(__file__).parent / "stand_in"
GREEDY = Decoding(8, temperature=0)


def wide_llama():
    """Heads of 32: vLLM's kernels take no narrower ones."""
    return tiny_llama(hidden_size=64, num_attention_heads=2, num_key_value_heads=1)


@pytest.fixture(scope="module", params=["dense", "mixtral", "granitemoeshared", "qwen2_moe", "glm4_moe"])
def saved(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "dense":
        model = wide_llama()
        model.save_pretrained(place / "model")
        return model, place / "model"
    shape = {"shared": 32} if request.param != "mixtral" else {}
    if request.param in ("qwen2_moe", "glm4_moe"):
        shape["dense_layers"] = [0]
    made = tiny_moe(
        place,
        tiny_llama(hidden_size=64, intermediate_size=160, num_attention_heads=2, num_key_value_heads=1),
        family=request.param,
        **shape,
    )
    return made.model.eval(), place / "moe" / "model"


@pytest.fixture(
    params=["stand-in", pytest.param("vllm", marks=pytest.mark.skipif(not REAL, reason="no vLLM"))]
)
def vllm(request, tmp_path, monkeypatch):
    if request.param == "vllm":
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        return "vllm"
    return stand_in(tmp_path, monkeypatch)


def stand_in(tmp_path, monkeypatch, **environment):
    """A Python that finds the stand-in under the name vllm."""
    lines = "".join(f"export {name}={value}\n" for name, value in environment.items())
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexport PYTHONPATH={STAND_IN}\n{lines}exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv(engine_vllm.PYTHON, str(script))
    return "stand-in"


def plan(engine, **changes):
    return Plan(
        **({"decoding": GREEDY, "draws": 2, "seed": 5, "batch": 6, "part": 2, "engine": engine} | changes)
    )


def test_greedy_answers_are_those_of_transformers(saved, vllm, tmp_path):
    model, folder = saved
    ours = sample.answer(model, Words(), "m", prompts(5), plan("transformers"), "s", tmp_path)
    theirs = sample.answer(model, Words(), "m", prompts(5), plan("vllm"), "s", tmp_path, folder)
    assert theirs == ours
    assert len(list(tmp_path.rglob("part-*"))) == 6, "each engine has its own pieces"


def test_sampled_answers_come_from_the_models_distribution(vllm, tmp_path):
    """First tokens of many draws against the probabilities, and the same seeds give the same answers."""
    model, draws = wide_llama(), 400
    asked, how = prompts(1), Decoding(1, temperature=0.7, top_p=0.8)
    same = plan("vllm", decoding=how, draws=draws, batch=64)
    found = sample.answer(model, Words(), "m", asked, same, "s", tmp_path / "a")
    firsts = torch.tensor([answer["ids"][0] for answer in found[0]["answers"]])
    with torch.no_grad():
        p = (model(torch.tensor([asked[0].ids])).logits[0, -1] / 0.7).softmax(0)
    value, order = p.sort(descending=True)
    inside = order[value.cumsum(0) - value < 0.8]
    assert set(firsts.tolist()) <= set(inside.tolist())
    share, top = (firsts == order[0]).float().mean().item(), (p[order[0]] / p[inside].sum()).item()
    assert abs(share - top) < 4 * (top * (1 - top) / draws) ** 0.5 + 1e-6
    again = sample.answer(model, Words(), "m", asked, same, "s", tmp_path / "b")
    assert again == found


def test_a_model_read_in_another_way_is_refused(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, STAND_IN_BIAS=9)
    with pytest.raises(InputError, match=r"vllm reads .* in another way.*engine: transformers"):
        sample.answer(wide_llama(), Words(), "m", prompts(5), plan("vllm"), "s", tmp_path / "c")
    assert not list((tmp_path / "c").rglob("part-*"))


def test_a_model_that_it_cannot_run_is_named(vllm, tmp_path):
    folder = tmp_path / "odd"
    wide_llama().save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(raw | {"model_type": "nobody_knows", "architectures": ["Nobody"]})
    )
    with pytest.raises(InputError, match=r"vllm cannot run .*odd"):
        sample.answer(wide_llama(), Words(), "m", prompts(5), plan("vllm"), "s", tmp_path / "c", folder)


def test_a_process_that_dies_is_an_error_and_a_stop_is_a_stop(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, STAND_IN_DIES=1)
    with pytest.raises(InputError, match="ended with code 3"):
        sample.answer(wide_llama(), Words(), "m", prompts(5), plan("vllm"), "s", tmp_path / "c")
    real = engine_vllm.Vllm._ask

    def stopped(self, *args):
        found = real(self, *args)
        signals.request_stop()
        return found

    signals.install()
    monkeypatch.setattr(engine_vllm.Vllm, "_ask", stopped)
    try:
        with pytest.raises(Interrupted, match="run again"):
            sample.answer(wide_llama(), Words(), "m", prompts(5), plan("vllm"), "s", tmp_path / "c")
    finally:
        signals._stop.clear()
        signals.restore()


def test_without_vllm_the_error_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.delenv(engine_vllm.PYTHON, raising=False)
    with pytest.raises(InputError, match=r"MOESAIC_VLLM_PYTHON.*docs/howto/vllm\.md"):
        sample.answer(wide_llama(), Words(), "m", prompts(5), plan("vllm"), "s", tmp_path)
    monkeypatch.setenv(engine_vllm.PYTHON, str(tmp_path / "none"))
    with pytest.raises(InputError, match="is no file"):
        sample.answer(wide_llama(), Words(), "m", prompts(5), plan("vllm"), "s", tmp_path)


def test_what_is_there_needs_no_vllm(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    made = sample.answer(wide_llama(), Words(), "m", prompts(5), plan("vllm"), "s", tmp_path / "c")
    monkeypatch.delenv(engine_vllm.PYTHON)
    assert sample.answer(wide_llama(), Words(), "m", prompts(5), plan("vllm"), "s", tmp_path / "c") == made
