"""`moesaic export`: a finished stage's model as a folder to give away, with its card."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from moesaic.card import metadata, story, text
from moesaic.card import parent as parents
from moesaic.errors import InputError
from moesaic.flow import current, files, folders, manifest, paths
from moesaic.flow.manifest import Manifest
from moesaic.model import for_vllm
from moesaic.model.adapters import beside
from moesaic.model.depth import saved
from moesaic.report.gather import Gathered, Point, gather
from moesaic.schema import Config

log = logging.getLogger("moesaic.export")
CARD = "README.md"


def run(
    config: Config, variant: str | None, stage: str | None, out: Path, engine: str = "transformers"
) -> Path:
    """Copy the model of a stage to `out`, its files checked, and write README.md into it.

    Args:
        engine: `vllm`: with every tensor that it asks for (model/for_vllm.py).

    Raises:
        InputError: the variant or the stage is unknown or not finished, a stage before it was made again since, a file is
            damaged, `out` exists, or vLLM would run half of the model.
    """
    if stage not in config.stages:
        raise InputError(f"--stage {stage}: not a stage of this configuration: {', '.join(config.stages)}")
    if variant not in config.variants:
        raise InputError(
            f"--variant {variant}: not a variant of this configuration: {', '.join(config.variants)}"
        )
    if out.exists():
        raise InputError(f"{out} exists already; give another folder, or move it away")
    found = gathered(config)
    point = next((item for item in found.points if (item.variant, item.stage) == (variant, stage)), None)
    if point is None:
        raise InputError(f"{paths.folder(stage, variant)}: not finished; run the {stage} step first")
    if engine == "vllm":
        refuse_half(point.model.folder / "model")
    _check_lineage(config, story.lineage(found, point))
    _check_configured(config, point)
    manifest.verify(point.model)
    with files.atomic_path(out) as folder:
        if engine == "vllm":
            for_vllm.write(point.model.folder / "model", folder)
        else:
            shutil.copytree(point.model.folder / "model", folder)
        if beside.needed(point.model):
            shutil.copytree(point.model.folder / beside.FOLDER, folder / beside.FOLDER)
        (folder / CARD).write_text(card(config, found, point), encoding="utf-8")
    missing = "" if point.scores else "; it is not evaluated yet, so the card has no numbers"
    log.info("%s: %s of %s with its card%s", out, point.model.metrics["architecture"], point.label, missing)
    return out


def refuse_half(folder: Path) -> None:
    """Refuse a model that vLLM would run without its adapter or its depth routers. Raises InputError."""
    beside.refuse_half(folder, "vLLM")
    if files.read_json(folder / "config.json")["model_type"] == saved.MODEL_TYPE:
        raise InputError(
            f"{folder}: its layers skip FFNs by routers of their own, for which vLLM has no place; `moesaic fold` first, or export without --for vllm"
        )


def gathered(config: Config, results: Path = Path("results")) -> Gathered:
    """What is finished of a run, without evaluations of models that were made again since.

    Raises:
        InputError: not even the dense parent is finished.
    """
    plan = paths.plan_step(config, "report")
    places = {name: results.joinpath(*path.parts[1:]) for name, path in plan.inputs.items()}
    done = {name: manifest.read(path) for name, path in places.items() if path.exists()}
    if "dense" not in done:
        raise InputError(f"{paths.folder('dense')}: not finished; run the workflow first")
    models = {"dense/evaluate": "dense"} | {
        f"{variant}/evaluate/{stage}": f"{variant}/{stage}"
        for variant in config.variants
        for stage in config.stages
    }
    for evaluation, name in models.items():
        model, made = done.get(name), done.get(evaluation)
        if made is None:
            continue
        beside_dense = "parent" not in made.inputs or (
            "dense/evaluate" in done and made.inputs["parent"] == _digest(done["dense/evaluate"])
        )
        if model is None or made.inputs.get("model") != _digest(model) or not beside_dense:
            del done[evaluation]
    return gather(plan.settings, done)


def _check_lineage(config: Config, points: list[Point]) -> None:
    """Each model was made from the one before it that is there now, rounds included; the first from the dense parent."""
    before = manifest.read(paths.folder("dense"))
    for point in points:
        rounds = paths.round_steps(config, str(point.variant), point.stage)
        trained = [part for step, part in rounds if step == point.stage]
        for part in (*trained, None):
            made = manifest.read(paths.folder(point.stage, point.variant, part=part))
            if _digest(before) not in made.inputs.values():
                raise InputError(
                    f"{made.folder}: not made from what {before.folder} holds now, so its history is not known; run "
                    f"`snakemake {made.folder / manifest.NAME}`, then export again"
                )
            before = made


def _check_configured(config: Config, point: Point) -> None:
    """A card tells parent, licence and data from the configuration and the shared steps: they must be those that the model was made of.

    Raises:
        InputError: a step up to the model is another configuration's, or was made again since.
    """
    found = current.look(config, Path("results"))
    todo, seen = [paths.folder(point.stage, point.variant)], set[Path]()
    while todo:
        item = found[todo.pop()]
        if item.done is None:
            raise InputError(
                f"{item.place.folder}: not there any more, or damaged; run `snakemake {item.place.folder / manifest.NAME}` first"
            )
        if not item.same:  # another version of the step says nothing about parent, licence and data
            raise InputError(
                f"{item.place.folder}: not made with the settings of this configuration, from which the card is written; export with the configuration "
                f"of the run, or run `snakemake {paths.folder(point.stage, point.variant) / manifest.NAME}` first"
            )
        for name, path in item.place.inputs.items():
            shared = found[path.parent]
            if shared.place.step in folders.PREPARE and (
                shared.done is None or item.done.inputs.get(name) != _digest(shared.done)
            ):
                raise InputError(
                    f"{item.place.folder}: made from other data than {path.parent} holds now, which the card would tell of; run "
                    f"`snakemake {item.place.folder / manifest.NAME}` first"
                )
        seen.add(item.place.folder)
        todo += [path.parent for path in item.place.inputs.values() if path.parent not in seen]


def _digest(made: Manifest) -> str:
    return files.sha256(made.folder / manifest.NAME)


def card(config: Config, run: Gathered, point: Point) -> str:
    """The whole card of a model: metadata and text."""
    name = f"{run.name}-{point.variant}-{point.stage}"
    shape: dict[str, Any] = json.loads(
        (point.model.folder / "model" / "config.json").read_text(encoding="utf-8")
    )
    parent = parents.facts(config.model)
    head = metadata.metadata(run, point, parent, name, shape).to_yaml()
    return f"---\n{head}\n---\n\n{text.body(run, point, parent, name, shape)}"
