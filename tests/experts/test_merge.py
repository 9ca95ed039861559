"""There and back: an untrained split becomes the parent again."""

import copy

import pytest
import torch
from tiny import tiny_llama, tiny_moe

from moesaic import cli
from moesaic.distill import students
from moesaic.errors import InputError
from moesaic.experts import merge
from moesaic.flow import manifest
from moesaic.model import depth, families, load
from moesaic.model.depth import expand
from moesaic.schema import Depth


@pytest.mark.parametrize(
    ("family", "shared"), [("mixtral", 0), ("granitemoeshared", 32), ("qwen2_moe", 32), ("glm4_moe", 32)]
)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("dense_layers", [[], [0]])
def test_merging_gives_the_parent(tmp_path, llama, family, shared, ordered, dense_layers):
    if dense_layers and family not in ("qwen2_moe", "glm4_moe"):
        pytest.skip("has no place for dense layers")
    tiny_moe(
        tmp_path, llama, shared=shared, experts=8 if shared else 4, family=family, scale="times-k", dense_layers=dense_layers,
    )  # fmt: skip
    assignment = tmp_path / "moe" / "assignment.parquet" if ordered else None
    merge.run(tmp_path / "moe" / "model", tmp_path / "back", 2.0, assignment)
    back = load.load_model(tmp_path / "back")
    ids = torch.randint(3, 512, (2, 24))
    with torch.no_grad():
        assert (back(input_ids=ids).logits - llama(input_ids=ids).logits).abs().max() < 1e-3
    if ordered:
        for name, tensor in llama.state_dict().items():
            assert torch.allclose(back.state_dict()[name], tensor, atol=1e-6), name


@pytest.mark.parametrize(("family", "shared"), [("mixtral", 0), ("glm4_moe", 32)])
def test_factors_of_their_own_layer_are_undone(tmp_path, llama, family, shared):
    """Calibrated ones differ from layer to layer; the model's configuration has them, and other depths and numbers per token change them."""
    layers = {"1": {"scale": "unit"}} if not shared else {}
    made = tiny_moe(
        tmp_path,
        llama,
        shared=shared,
        experts=8 if shared else 4,
        family=family,
        scale="calibrated",
        layers=layers,
    )
    folder = tmp_path / "moe" / "model"
    factors = made.model.config.moesaic_factors
    assert len(factors) == 3
    assert len({round(value, 4) for value in factors}) == 3
    merge.run(folder, tmp_path / "back", None, tmp_path / "moe" / "assignment.parquet")
    back = load.load_model(tmp_path / "back")
    for name, tensor in llama.state_dict().items():
        assert torch.allclose(back.state_dict()[name], tensor, atol=1e-5), name
    asked = {"per_token": 1, "drop_layers": [0], "ffn": None}
    students.make(load.load_model(folder), asked, None).save_pretrained(tmp_path / "student")
    merge.run(tmp_path / "student", tmp_path / "shallow")
    wanted = copy.deepcopy(llama)
    expand.relabel(wanted, list(wanted.model.layers[1:]), [1, 2])
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found = load.load_model(tmp_path / "shallow")(input_ids=ids).logits
        assert (found - wanted(input_ids=ids).logits).abs().max() < 1e-4
    with pytest.raises(InputError, match=r"--factor 2: .* was made with .*leave it out"):
        merge.run(folder, tmp_path / "x", 2.0)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("moesaic_factors", "unknown"))
    with pytest.raises(InputError, match="give --factor"):
        merge.run(folder, tmp_path / "x")


def test_assignments_of_other_models_and_overlaps_are_refused(tmp_path):
    tiny_moe(tmp_path)
    # same sizes, other split: only the hash tells
    (tmp_path / "same").mkdir()
    tiny_moe(tmp_path / "same", seed=1)
    same = tmp_path / "same" / "moe" / "assignment.parquet"
    with pytest.raises(InputError, match=r"same.moe.assignment\.parquet: the split of another model.*hash"):
        merge.run(tmp_path / "moe" / "model", tmp_path / "x", None, same)
    same.write_bytes(same.read_bytes()[:200])
    with pytest.raises(InputError, match="not a readable parquet file"):
        merge.run(tmp_path / "moe" / "model", tmp_path / "x", None, same)
    # a model that carries no hash: the sizes tell
    config = tmp_path / "moe" / "model" / "config.json"
    config.write_text(config.read_text().replace("moesaic_split", "unknown"))
    (tmp_path / "other").mkdir()
    tiny_moe(tmp_path / "other", tiny_llama(num_hidden_layers=2))
    with pytest.raises(InputError, match="another model"):
        merge.run(
            tmp_path / "moe" / "model",
            tmp_path / "x",
            None,
            tmp_path / "other" / "moe" / "assignment.parquet",
        )
    with pytest.raises(InputError, match="no such assignment"):
        merge.run(tmp_path / "moe" / "model", tmp_path / "x", None, tmp_path / "none.parquet")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "settings", [{"split": "copy", "granularity": 2}, {"split": "drop"}, {"split": "sharing-inner"}]
)
@pytest.mark.parametrize("ordered", [True, False])
def test_neurons_in_several_experts_are_refused(tmp_path, settings, ordered):
    """With the split file, and without: the model says it of itself, after training too. An older model does not, and its file tells."""
    model = tiny_moe(tmp_path, **settings).model
    model.save_pretrained(tmp_path / "trained")
    assignment = tmp_path / "moe/assignment.parquet" if ordered else None
    with pytest.raises(InputError, match="several experts hold the same neurons"):
        merge.run(tmp_path / "trained", tmp_path / "x", None, assignment)
    if ordered:
        config = tmp_path / "trained/config.json"
        config.write_text(config.read_text().replace("moesaic_overlap", "unknown"))
        with pytest.raises(InputError, match="neurons are in several experts"):
            merge.run(tmp_path / "trained", tmp_path / "x", None, assignment)
    assert not (tmp_path / "x").exists()


def test_a_partition_carries_no_mark(tmp_path):
    tiny_moe(tmp_path)
    assert "moesaic_overlap" not in (tmp_path / "moe/model/config.json").read_text()


def test_a_trained_gate_of_the_shared_expert_is_refused(tmp_path):
    model = tiny_moe(tmp_path, shared=32, family="qwen2_moe").model
    gate = next(families.parts(model)).shared.shared_expert_gate
    gate.weight.data[0, 3] = 0.1
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(InputError, match=r"layer 0: the gate of the shared expert was trained"):
        merge.run(tmp_path / "trained", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_nothing_is_replaced_and_nothing_half_is_written(tmp_path):
    tiny_moe(tmp_path)
    folder, mine = tmp_path / "moe" / "model", tmp_path / "models"
    mine.mkdir()
    (mine / "precious").touch()
    with pytest.raises(InputError, match=r"models exists already"):
        merge.run(folder, mine)
    assert (mine / "precious").exists()
    with pytest.raises(SystemExit):
        cli.main(["fold", str(folder), str(mine)])
    assert (mine / "precious").exists()
    manifest.write(
        folder.parent, "tune", 1, {}, {}, ["model"], {"adapter": {"method": "lateral", "merged": False}}
    )
    with pytest.raises(InputError, match="only whole with its adapter"):
        merge.run(folder, tmp_path / "x")


def test_layers_that_skip_are_folded_first(tmp_path):
    model = tiny_moe(tmp_path).model
    settings = Depth(skip={"capacity": 0.5}).model_dump(mode="json")
    depth.prepare(model, settings, None)
    depth.save(model, tmp_path / "skipping")
    with pytest.raises(InputError, match=r"`moesaic fold` first"):
        merge.run(tmp_path / "skipping", tmp_path / "x")
