"""The last stage of every variant in MLflow's model registry: signature, model card, and a pointer to the weights, which are not copied.

A registered version is a small folder (MLmodel, moesaic.json, README.md) in the artifacts of the run that made the model. `mlflow.pyfunc.load_model`
loads the folder of weights that moesaic.json names, where that can be reached.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic import config as configuration
from moesaic.card import export
from moesaic.card import parent as parents
from moesaic.flow import files, manifest, store
from moesaic.flow.current import Found
from moesaic.model.adapters import beside
from moesaic.report.gather import Point, gather
from moesaic.schema import Config

ARTIFACT = "model"
DATA = "moesaic.json"


def models(client: Any, config: Config, found: Mapping[Path, Found], runs: dict[str, str]) -> None:
    """One version for each variant whose last stage is new, or evaluated anew; doing it again changes nothing.

    Args:
        found: current.look of the results; their report is finished.
        runs: step key, as VARIANT/STAGE, -> id of its run.
    """
    report = next(item for item in found.values() if item.place.step == "report")
    assert report.done is not None
    inputs = {name: found[path.parent].done for name, path in report.place.inputs.items()}
    run = gather(report.place.settings, {name: done for name, done in inputs.items() if done is not None})
    # an entry names its weights by it: after a move there is a new one
    home = str(report.done.folder.absolute())
    parent = parents.changing(config.model)  # and the card with it
    for point in run.points:
        key = f"{point.variant}/{point.stage}"
        if point.variant is None or point.stage != config.stages[-1] or key not in runs:
            continue
        name = f"{config.name}-{point.variant}"
        told = (key, f"{point.variant}/evaluate/{point.stage}", "dense/evaluate")
        state = configuration.digest([home, parent, *(report.done.inputs.get(item) for item in told)])
        known = [item for item in _versions(client, name) if item.tags.get("moesaic.state") == state]
        if known:  # where the folder was away and is back, it is the newest again
            client.set_registered_model_alias(name, "newest", known[0].version)
            continue
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=f"{config.name}, variant {point.variant}")
        card = export.card(config, run, point)
        with tempfile.TemporaryDirectory(prefix="moesaic-model-") as place:
            write(Path(place), point, card, runs[key])
            client.log_artifacts(runs[key], place, ARTIFACT)
        source = f"{client.get_run(runs[key]).info.artifact_uri}/{ARTIFACT}"
        tags = {
            "moesaic.state": state,
            "moesaic.folder": str(point.model.folder),
            "moesaic.stage": point.stage,
        }
        version = client.create_model_version(name, source, runs[key], tags, description=_body(card))
        client.set_registered_model_alias(name, "newest", version.version)


def write(out: Path, point: Point, card: str, run_id: str) -> None:
    """The folder of a version."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from moesaic.card import served

    signature = ModelSignature(
        Schema([ColSpec("string", "prompt")]),
        Schema([ColSpec("string")]),
        ParamSchema([ParamSpec("max_new_tokens", "integer", served.NEW_TOKENS)]),
    )
    entry = Model(run_id=run_id, signature=signature)
    pyfunc.add_to_model(entry, loader_module=served.__name__, data=DATA)
    entry.save(str(out / "MLmodel"))
    facts = {
        "folder": str((point.model.folder / "model").absolute()),
        "manifest": files.sha256(point.model.folder / manifest.NAME),
    }
    if beside.needed(point.model):
        facts["adapter"] = str((point.model.folder / beside.FOLDER).absolute())
    (out / DATA).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (out / export.CARD).write_text(card, encoding="utf-8")


def _versions(client: Any, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'"))


def _body(card: str) -> str:
    """A card without its metadata, as long as MLflow takes."""
    return card.split("\n---\n", 1)[-1].strip()[: store.TAG_LENGTH]
