"""The model registry: one version per finished model, with signature and card; MLflow itself loads and asks it."""

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import project
import pytest
from mlflow.tracking._tracking_service import utils
from report import fake_results

from moesaic.card import register
from moesaic.errors import InputError
from moesaic.flow import files, manifest, store, track
from moesaic.model import load


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = fake_results.load_config(["construct", "pretrain"], ["activation", "random"])
    fake_results.build(config)
    fake_results.report(config)
    return config


def versions(config):
    client, _ = store.open_experiment(config.track.uri, config.track.experiment)
    return client, sorted(
        client.search_model_versions("name LIKE '%'"), key=lambda item: (item.name, int(item.version))
    )


def test_versions_follow_the_models(config):
    track.replay(config, Path("results"))
    track.replay(config, Path("results"))
    client, found = versions(config)
    assert [(item.name, item.version) for item in found] == [
        (f"{config.name}-activation", 1), (f"{config.name}-random", 1),
    ]  # fmt: skip
    first = found[0]
    assert first.tags["moesaic.folder"] == "results/activation/pretrain"
    assert client.get_run(first.run_id).data.tags["moesaic.step_key"] == "activation/pretrain"
    assert "bits per byte" in first.description
    place = Path(first.source)
    assert place.joinpath("README.md").read_text().startswith("---\n")
    signature = mlflow.models.Model.load(str(place)).signature
    assert signature.inputs.input_names() == ["prompt"]
    known = manifest.read(Path("results/activation/pretrain")).metrics
    fake_results.finish(config, "pretrain", ["model"], known | {"steps": 7}, "activation")
    fake_results.again(config, "evaluate", "activation", "pretrain")
    fake_results.report(config)
    track.replay(config, Path("results"))
    client, found = versions(config)
    assert [item.version for item in found if item.name.endswith("-activation")] == [1, 2]
    assert client.get_model_version_by_alias(f"{config.name}-activation", "newest").version == 2
    assert [item.version for item in found if item.name.endswith("-random")] == [1], "nothing of it is new"
    licensed = config.model_copy(update={"model": config.model.model_copy(update={"license": "mit"})})
    track.replay(licensed, Path("results"))
    client, found = versions(config)
    assert [item.version for item in found if item.name.endswith("-activation")] == [1, 2, 3], "another card"
    assert "license: mit" in Path(found[2].source, "README.md").read_text()
    quiet = config.model_copy(
        update={
            "track": config.track.model_copy(update={"register_models": False, "uri": "sqlite:///other.db"})
        }
    )
    track.replay(quiet, Path("results"))
    assert versions(quiet)[1] == []


def test_a_moved_folder_gives_versions_that_find_their_weights(config, tmp_path, monkeypatch):
    track.replay(config, Path("results"))
    there = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.move(tmp_path, there)
    monkeypatch.chdir(there)
    utils._artifact_repos_cache.clear()  # as in a new process
    for _ in range(2):
        track.replay(config, Path("results"))
    _, found = versions(config)
    mine = [item for item in found if item.name.endswith("-activation")]
    assert [item.version for item in mine] == [1, 2]
    facts = json.loads((Path(mine[-1].source) / register.DATA).read_text())
    assert Path(facts["folder"]) == there / "results/activation/pretrain/model"


def test_mlflow_loads_it(tmp_path):
    path = project.make(tmp_path, {"stages": ["construct"]})
    project.prepare(path)
    with contextlib.chdir(path.parent):
        made = manifest.read(Path("results/activation/construct"))
        (tmp_path / "entry").mkdir()
        register.write(tmp_path / "entry", SimpleNamespace(model=made), "card", "0" * 32)
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "entry"))
    given = loaded.predict(pd.DataFrame({"prompt": ["Hello", "What is this?"]}), params={"max_new_tokens": 6})
    folder = path.parent / "results/activation/construct/model"
    model, tokenizer = load.load_model(folder), load.load_tokenizer(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    out = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert given[0] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert len(given) == 2
    written = (folder.parent / manifest.NAME).read_text()
    (folder.parent / manifest.NAME).write_text(written + " ")
    with pytest.raises(InputError, match="made again since this version was registered"):
        mlflow.pyfunc.load_model(str(tmp_path / "entry"))
    (folder.parent / manifest.NAME).write_text(written)
    assert files.sha256(folder.parent / manifest.NAME) in (tmp_path / "entry/moesaic.json").read_text()
