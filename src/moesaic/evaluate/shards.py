"""Step `evaluate_part`: a share of an evaluation's tasks in a job of its own, as the files that keep finished tasks; `evaluate` takes them over.

With evaluate.shards: N the tasks of all suites, in a fixed order, are dealt out to N jobs in turn. A task's scores depend on nothing but the
model, its files and its settings (kept.py), so that the evaluation is the same to the byte, whatever N. Text, routing, stress, attacks,
instructions and pictures stay with `evaluate`.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from moesaic.config import digest
from moesaic.data.images import vocabulary
from moesaic.errors import InputError
from moesaic.evaluate import harness, kept
from moesaic.evaluate.reliability import suite as reliability
from moesaic.evaluate.science import suite as science
from moesaic.evaluate.temporal import suite as temporal
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context, Result
from moesaic.generate import decode
from moesaic.model import load
from moesaic.model.adapters import beside

log = logging.getLogger("moesaic.shards")

TASKS = "tasks"
"""Folder of a shard's finished tasks."""


def run(context: Context) -> Result:
    """Evaluate this shard's tasks and leave tasks/TASK-DIGEST.json of each, and their names in stats.json.

    Raises:
        InputError: as harness.run; instructions are to go through a chat template that the tokenizer does not have.
    """
    settings, seed = context.settings["evaluate"], context.settings["seed"]
    mine = share(calls(settings, context.inputs), context.settings["shard"], context.settings["shards"])
    names: list[str] = []
    if mine:
        model, tokenizer = loaded(context)
        with vocabulary.text_only(model, vocabulary.of(tokenizer)):
            for call in mine:
                if call.chat and not tokenizer.chat_template:
                    raise InputError(
                        "data.reliability.prompt: chat, but the model's tokenizer has no chat template; set it to instruction, or give model.chat_template"
                    )
                whose = identity(context, call.source)
                call.run(model, tokenizer, settings, context.work, seed, whose)
                names += [
                    kept.name_of(name, call.settings(settings), seed, whose.of(name), call.chat, call.dola)
                    for name in call.tasks
                ]
    with files.atomic_path(context.out / TASKS) as folder:
        folder.mkdir()
        for name in names:
            text = (context.work / TASKS / name).read_text(encoding="utf-8")
            (folder / name).write_text(text, encoding="utf-8")
    files.write_json(context.out / "stats.json", {"files": sorted(names)})
    # With more shards than tasks some have none.
    return Result([TASKS, "stats.json"] if names else ["stats.json"], {"tasks": len(names)})


def calls(settings: dict[str, Any], inputs: Mapping[str, Manifest]) -> list[harness.Call]:
    """Everything that an evaluation asks the harness for, in a fixed order."""
    found = own_tasks(settings, inputs["tasks"])
    suites: dict[str, Callable[[dict[str, Any], Manifest], list[harness.Call]]] = {
        "temporal": temporal.calls,
        "science": science.calls,
        "reliability": reliability.calls,
    }
    for name, of in suites.items():
        if name in settings["suites"]:
            manifest.verify(inputs[name], ["tasks/", "stats.json"])
            found += of(settings, inputs[name])
    return found


def own_tasks(settings: Mapping[str, Any], source: Manifest) -> list[harness.Call]:
    """The call for evaluate.tasks."""
    return [harness.Call("tasks", list(settings["tasks"]), source.folder)]


def share(every: list[harness.Call], shard: int, shards: int) -> list[harness.Call]:
    """The calls with this shard's tasks only; every task is in exactly one shard. Calls without any are left out."""
    found, at = [], 0
    for call in every:
        mine = [name for i, name in enumerate(call.tasks, at) if i % shards == shard]
        at += len(call.tasks)
        if mine:
            others = tuple(name for name in call.tasks if name not in mine)
            found.append(replace(call, tasks=mine, elsewhere=others))
    return found


def take_over(context: Context) -> None:
    """Put what the shards have finished where the harness looks for finished tasks.

    Raises:
        InputError: a shard's file is damaged.
    """
    for name, part in context.inputs.items():
        if not name.startswith("part-"):
            continue
        manifest.verify(part)
        for file in files.read_json(part.folder / "stats.json")["files"]:
            text = (part.folder / TASKS / file).read_text(encoding="utf-8")
            files.write_text(context.work / TASKS / file, text)
        log.info("%s: %d tasks from %s", context.name, part.metrics["tasks"], part.folder)


# ---------------------------------------------------------------- what evaluate and its shards have in common


def identity(context: Context, source: str) -> kept.Identity:
    """The model's weights and the files of a suite's tasks, as digests."""
    model = [(item.path, item.sha256) for item in context.inputs["model"].outputs]
    # Only what the harness reads: other texts for the routers or the attacks change no task.
    aside = ("stats.json", "texts.jsonl", "attack.jsonl")
    data = {item.path: item.sha256 for item in context.inputs[source].outputs if item.path not in aside}
    theirs = {"own": own} if (own := context.inputs[source].metrics.get("own")) else {}

    def seen(paths: Iterable[str]) -> str:
        return digest(
            {"model": sorted(model), "tasks": sorted((path, data[path]) for path in paths), **theirs}
        )

    names = {PurePosixPath(path).stem for path in data if path.endswith(".yaml")}
    asked = names | (set(context.settings["evaluate"]["tasks"]) if source == "tasks" else set())
    owners = {path: _owner(path, names) for path in data}
    return kept.Identity(
        seen(data),
        {name: seen(path for path, owner in owners.items() if owner in (None, name)) for name in asked},
    )


def _owner(path: str, names: Collection[str]) -> str | None:
    """The task whose file it is by its name or by its folder's, as NAME.yaml, data/NAME.test.jsonl and NAME/data.jsonl; None: all tasks may read it."""
    found = PurePosixPath(path)
    return next((part for part in (*found.parts[:-1], found.name.split(".")[0]) if part in names), None)


def loaded(context: Context) -> tuple[Any, Any]:
    """The model (on a GPU where there is one) and its tokenizer, after checking files and vocabulary."""
    source, tokens = context.inputs["model"], context.inputs["tokens"]
    manifest.verify(source, ["model/"])
    manifest.verify(context.inputs["tasks"])
    folder = source.folder / "model"
    model = load.load_model(folder)
    beside.put_on(model, source)
    expected, vocabulary = tokens.metrics["vocab_size"], model.config.vocab_size
    if vocabulary != expected:
        raise InputError(
            f"{folder}: a vocabulary of {vocabulary}, but the tokens in {tokens.folder} were made for {expected}; run the tokens step for this model"
        )
    for name, parameter in model.named_parameters():
        if not math.isfinite(float(parameter.detach().float().sum())):
            raise InputError(
                f"{folder}: {name} holds NaN or infinite weights; training diverged or the file is damaged: make the model again"
            )
    model.config._name_or_path = str(folder)
    return model.to(decode.device()), load.load_tokenizer(folder)
