"""Pictures through the workflow on the tiny project: vocabulary, tune with adapters, evaluation, report; kills; what stays to the last bit."""

import contextlib
import json
import shutil
from pathlib import Path

import killing
import pictured
import project
import pytest
import torch
import yaml
from safetensors.torch import load_file

from moesaic import config
from moesaic.data.images import vocabulary
from moesaic.errors import InputError
from moesaic.flow import files, manifest, metrics
from moesaic.model import load
from moesaic.model.adapters import attach, beside
from moesaic.train import stage

OUT = Path("results/activation/tune")
MODEL = "model/model.safetensors"
FILES = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", MODEL, "manifest.json")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pictured.prepare(pictured.make(folder))
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def change(folder, stages=None, **tune):
    path = folder / "config.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["tune"] |= tune
    raw["stages"] = stages or raw["stages"]
    path.write_text(yaml.safe_dump(raw))
    return path


def scores(path, stage, variant="activation"):
    """(task, metric) -> entry, of an evaluation that is run here."""
    out = project.run(path, "evaluate", None if stage == "dense" else variant, stage)
    return {(item["task"], item["metric"]): item for item in json.loads((out / "scores.json").read_text())}


def text(found):
    """The scores of text and routing alone."""
    return {key: item for key, item in found.items() if key[0] != "images"}


def test_lateral_goes_through_the_workflow(folder):
    path = change(folder, steps=12, validation_batches=4)
    project.run(path, "tune", "activation")
    found = manifest.read(OUT)
    paths = {output.path for output in found.outputs}
    assert {*FILES[:3], "adapter/image_embeddings.safetensors", "adapter/kernels.png"} <= paths
    assert (OUT / "adapter/kernels.png").read_bytes().startswith(b"\x89PNG")
    facts = found.metrics["adapter"]
    # q, k, v, o of 3 layers at rank 4, both branches; 16 numbers per causal 3 x 3 tap between 4 channels
    expected = sum(2 * 4 * (48 + width) + 4 * 4 * 5 for width in (48, 16, 16, 48)) * 3
    assert facts == {"method": "lateral", "rank": 4, "parameters": expected, "merged": False}
    series = metrics.series(OUT / "work/metrics.jsonl")
    for name in ("image", "text"):
        values = [value for _, value in series[f"train/modality/{name}"]]
        assert sum(values[-3:]) < sum(values[:3]), name

    before, after = load_file("results/activation/construct/" + MODEL), load_file(OUT / MODEL)
    tokens = vocabulary.of(load.load_tokenizer(OUT / "model"))
    rows = attach.row_ids(tokens)
    assert (min(rows), max(rows)) == (512, 512 + 8 + 1)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if "embed_tokens" in name or "lm_head" in name:
            assert torch.equal(tensor[:512], after[name][:512])
            assert not torch.equal(tensor[rows], after[name][rows]), name
        else:
            assert torch.equal(tensor, after[name]), f"{name} is frozen"

    dense, construct, tune = (scores(path, stage) for stage in ("dense", "construct", "tune"))
    for metric in ("image_nats", "text_nats"):
        assert tune["images", metric]["value"] < construct["images", metric]["value"], metric
        # evaluation reads the saved files, validation saw the model that was trained: the same held-out conversations
        name = {"image_nats": "image", "text_nats": "text"}[metric]
        if name == "image":
            assert tune["images", metric]["value"] == pytest.approx(
                series["valid/modality/image"][-1][1], abs=1e-4
            )
    assert 0 < dense["images", "grid_accuracy"]["chance"] < 1
    shown = json.loads(Path("results/activation/evaluate/tune/images.json").read_text())
    assert len(shown["drawn"]) == len(shown["described"]) == 2
    for item in shown["drawn"]:
        assert item["words"].startswith("Draw ")
        assert all(item[key].startswith("data:image/png;base64,") for key in ("original", "codes", "drawn"))
    assert 1.0 < shown["unigram_nats"] < 3.0  # log 8 = 2.08
    assert all(" on " in item["caption"] for item in shown["described"])
    project.run(path, "report")
    page = Path("results/report.html").read_text()
    assert '<section id="pictures"' in page
    assert page.count("data:image/png;base64,") >= 3 * (2 * 4 + 2) + 1
    assert "Loss on image codes" in page
    assert page.count('<figure class="kernels"') == 1
    assert "attach.load" in page, "the page says how to load the model with its adapter"


def test_the_saved_adapter_is_what_was_trained(folder):
    path = change(folder)
    project.run(path, "tune", "activation")
    step = manifest.read(OUT)
    model = load.load_model(OUT / "model")
    ids = torch.tensor([[1, 7, 9, 30, 521, *range(512, 520), *range(512, 520), 520, 40, 41]])
    bare = model(input_ids=ids).logits
    beside.put_on(model, step)
    assert not torch.allclose(model(input_ids=ids).logits, bare)
    with pytest.raises(InputError, match="cannot be folded into the model, so no stage can go on"):
        stage.load_stage_model(step)
    (OUT / "adapter/adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: damaged"):
        beside.put_on(load.load_model(OUT / "model"), step)


def test_text_without_a_picture_is_unchanged_to_the_last_digit(folder, tmp_path):
    """Image tokens and a frozen text branch: every score and every sample of text is that of the model before."""
    plain = project.make(tmp_path / "plain", {"stages": ["construct"]})
    with contextlib.chdir(plain.parent):
        for name in ("dense", "documents", "tokens", "tasks"):
            project.run(plain, name)
        expected = scores(plain, "dense")
        continued = Path("results/dense/evaluate/samples.json").read_text()
    path = change(folder, adapter={"method": "lateral", "rank": 4, "freeze_text": True})
    assert text(scores(path, "dense")) == expected
    assert Path("results/dense/evaluate/samples.json").read_text() == continued
    project.run(path, "tune", "activation")
    assert manifest.read(OUT).metrics["adapter"]["parameters"] > 0
    one, two = scores(path, "construct"), scores(path, "tune")
    assert text(one) == text(two)
    at = Path("results/activation/evaluate")
    assert (at / "construct/samples.json").read_text() == (at / "tune/samples.json").read_text()
    assert files.sha256(at / "construct/routing.parquet") == files.sha256(at / "tune/routing.parquet")
    assert one["images", "image_nats"]["value"] != two["images", "image_nats"]["value"]


def test_a_text_branch_that_learns_changes_text(folder):
    path = change(folder)
    project.run(path, "evaluate", stage="dense")
    project.run(path, "tune", "activation")
    assert text(scores(path, "construct")) != text(scores(path, "tune")), "or the test above could not fail"


def test_shared_linear_is_folded_and_stages_go_on(folder):
    stages = ["construct", "tune", "distill"]
    path = change(folder, stages, adapter={"method": "shared-linear", "rank": 4})
    project.run(path, "tune", "activation")
    facts = manifest.read(OUT).metrics["adapter"]
    assert facts["merged"]
    from transformers import AutoModelForCausalLM

    merged, info = AutoModelForCausalLM.from_pretrained(OUT / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    base = load.load_model(OUT / "model")
    start = load.load_model(Path("results/activation/construct/model"))
    start.get_input_embeddings().weight.data.copy_(base.get_input_embeddings().weight)
    attach.load(start, OUT / beside.FOLDER)
    ids = torch.tensor([[1, 7, 9, 30, 40, 41]])
    assert torch.allclose(merged(input_ids=ids).logits, start(input_ids=ids).logits, atol=1e-4)
    project.run(path, "distill", "activation")
    assert manifest.read(Path("results/activation/distill")).metrics["steps"] == 4


@pytest.mark.parametrize("method", ["two-linear", "moe-lora"])
def test_a_budget_sets_the_rank(folder, method):
    wanted = sum(2 * 8 * (48 + width) + 8 * 8 * 5 for width in (48, 16, 16, 48)) * 3
    path = change(folder, steps=1, adapter={"method": method, "rank": 8, "budget": wanted, "experts": 2})
    project.run(path, "tune", "activation")
    facts = manifest.read(OUT).metrics["adapter"]
    assert facts["parameters"] == pytest.approx(wanted, rel=0.05)
    assert not facts["merged"]


def test_all_weights_can_be_tuned_on_pictures(folder):
    path = change(folder, adapter=None)
    project.run(path, "tune", "activation")
    assert "adapter" not in manifest.read(OUT).metrics
    assert "train/modality/image" in metrics.series(OUT / "work/metrics.jsonl")


def test_killed_twice_equals_uninterrupted(prepared, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        shutil.copytree(prepared, folder)
        change(folder, steps=8)
    call = killing.command("tune")
    killing.finish(whole, call, 600)
    for moment in (3, 6):
        killing.killed(broken, call, lambda at=moment: killing.came_to(broken / OUT, at), 180)
    assert "going on from step" in killing.finish(broken, call, 600)
    for name in (*FILES, "adapter/image_embeddings.safetensors"):
        assert files.sha256(whole / OUT / name) == files.sha256(broken / OUT / name), name
    one, two = (metrics.series(folder / OUT / "work/metrics.jsonl") for folder in (whole, broken))
    for key in ("train/loss", "train/modality/image", "train/modality/text", "valid/modality/image"):
        assert one[key] == two[key], key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"images": None}}, r"lateral tells text from pictures and needs data\.images"),
        ({"stages": ["construct", "tune", "distill"]}, r"distill cannot go on from tune\.adapter lateral"),
        ({"tune": {"optimizer": {"weight_decay": 0.1}}}, r"set optimizer\.weight_decay to 0"),
        ({"tune": {"engine": {"kind": "fsdp"}}}, r"needs engine\.kind torch, not fsdp"),
        ({"tune": {"router": {"noise": "learned"}}}, r"routers are frozen; leave router\.noise"),
        ({"tune": {"depth": {"expand": {"every": 1}}}}, "cannot go with depth"),
        ({"tune": {"adapter": {"method": "moe-lora", "freeze_text": True}}}, "no branch of its own for text"),
        ({"tune": {"adapter": {"kernel": "wavelet"}}}, "wavelet"),
        ({"data": {"images": {"draw": "A picture."}}}, r"draw: must hold \{caption\}"),
        ({"data": {"images": {"filters": {"min_scores": {"text quality": 3}}}}}, "scores need a judge"),
        (
            {"data": {"chat": {"sources": [{"at": {"kind": "files", "path": "chat.json"}, "name": "images"}]}}},
            "'images' is the name of the conversations with pictures",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, changes, message):
    path = pictured.make(tmp_path)
    with pytest.raises(InputError, match=message):
        config.load(path, changes)


def test_a_centred_kernel_on_drawn_pictures_is_refused(folder):
    path = change(folder, adapter={"method": "lateral", "rank": 4, "causal": False})
    with pytest.raises(InputError, match="a centred kernel has already seen them"):
        project.run(path, "tune", "activation")
