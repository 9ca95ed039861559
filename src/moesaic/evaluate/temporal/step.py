"""Step `temporal`: questions about time for tuning and evaluation, split by content, and the lm-eval task folder made of the test side.

Writes {train,validation,test}.jsonl (Item.record per line), tasks/ (see lm_tasks.py) and stats.json.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moesaic.errors import InputError
from moesaic.evaluate.temporal import lm_tasks, loaders
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.make import SPLITS, Form, Split, contamination, generate, normal, split_of
from moesaic.evaluate.temporal.tasks import TASKS
from moesaic.flow import files
from moesaic.flow.manifest import Manifest, path_of
from moesaic.flow.step import Context, Result
from moesaic.schema import Temporal

log = logging.getLogger("moesaic.temporal")


def run(context: Context) -> Result:
    """Make or read every task's items, check that no question stands on two sides, write. Metrics: items by task, form and split.

    Raises:
        InputError: a folder, file or column that is missing, or published questions that are among the training items.
    """
    settings = Temporal.model_validate(context.settings["temporal"])
    seed = context.settings["seed"]
    items, sources = collect(settings, seed)
    check(items)
    by_split: dict[str, list[Item]] = {
        split: [item for item in items if item.split == split] for split in SPLITS
    }
    for split, rows in by_split.items():
        lines = (json.dumps(item.record(), ensure_ascii=False, sort_keys=True) + "\n" for item in rows)
        files.write_text(context.out / f"{split}.jsonl", "".join(lines))
    with files.atomic_path(context.out / "tasks") as folder:
        folder.mkdir()
        found = lm_tasks.write(folder, context.out / "tasks", by_split)
    counted = Counter((item.task, lm_tasks.form_of(item), item.split) for item in items)
    counts: dict[str, Any] = {}
    for (task, form, split), number in sorted(counted.items()):
        counts.setdefault(task, {"source": sources[task]}).setdefault(form, {})[split] = number
    missing = sorted(name for name in TASKS if name not in sources)
    stats = {"tasks": counts, "missing": missing, "lm_eval": found}
    files.write_json(context.out / "stats.json", stats)
    for task, rows in counts.items():
        few = [form for form in settings.forms if rows.get(form, {}).get("test", 0) < settings.test]
        if few and sources[task] == "generated":
            log.warning(
                "%s %s: only %s test items; there are no more problems",
                context.name,
                task,
                {f: rows.get(f, {}).get("test", 0) for f in few},
            )
    if missing:
        where = "; they need data.temporal.tram" if settings.tram is None else f" in {settings.tram}"
        log.warning("%s: no items of %s%s", context.name, ", ".join(missing), where)
    metrics = {
        "counts": counts,
        "missing": missing,
        "items": {split: len(rows) for split, rows in by_split.items()},
    }
    return Result([*(f"{split}.jsonl" for split in SPLITS), "tasks", "stats.json"], metrics)


def collect(settings: Temporal, seed: int) -> tuple[list[Item], dict[str, str]]:
    """All items, and where each task's come from: generated, tram, timebench or mctaco."""
    wanted = list(TASKS) if settings.tasks == "all" else settings.tasks
    counts: dict[str, int] = {split: getattr(settings, split) for split in SPLITS}
    items: list[Item] = []
    sources: dict[str, str] = {}
    for name in wanted:
        published = settings.tram is not None and (settings.published == "all" or not TASKS[name].generated)
        if published:
            assert settings.tram is not None
            found = _tram(Path(settings.tram), name, counts, settings.forms, settings.tasks != "all")
            items += found
            sources |= {name: "tram"} if found else {}
        elif TASKS[name].generated:
            items += generate(name, counts, settings.forms, seed)
            sources[name] = "generated"
        elif settings.tasks != "all":
            raise InputError(
                f"data.temporal.tasks: {name} cannot be generated with an exact answer; give TRAM's folder as data.temporal.tram"
            )
    if settings.tram is not None and settings.tasks == "all" and "tram" not in sources.values():
        there = {name: set(loaders.tram_forms(Path(settings.tram), name)) for name in wanted}
        asked = [name for name in wanted if settings.published == "all" or not TASKS[name].generated]
        forms = set[str]().union(*(there[name] for name in asked))
        if forms:
            raise InputError(
                f"data.temporal.forms: {settings.tram} has TRAM's files of the form {', '.join(sorted(forms))} only; add it"
            )
        if any(there.values()):
            raise InputError(
                f"data.temporal.published: {settings.tram} has TRAM's files of tasks that are generated only; set it to all, or leave out data.temporal.tram"
            )
        raise InputError(
            f"data.temporal.tram: none of TRAM's files, such as causality_mcq.csv, in {settings.tram} or below; unpack its zip files there"
        )
    for kind, path, load in (
        ("timebench", settings.timebench, loaders.timebench),
        ("mctaco", settings.mctaco, loaders.mctaco),
    ):
        if path is not None:
            # Sets of other papers are for evaluation: what they offer for development is used for few-shot prompts only.
            read = load(Path(path))
            for task in dict.fromkeys(item.task for item in read):
                mine = [item for item in read if item.task == task]
                items += _first((i for i in mine if i.split == "validation"), counts["validation"])
                items += _first((i for i in mine if i.split == "test"), counts["test"])
                sources[task] = kind
    return items, sources


def _tram(folder: Path, task: str, counts: dict[str, int], forms: Sequence[Form], named: bool) -> list[Item]:
    """A task's items from TRAM's files: split by content as the generated ones are; the published shots come first in validation.

    Args:
        named: in the configuration, so that the task must be there; False: what is there is taken.
    """
    found: list[Item] = []
    there = [form for form in loaders.tram_forms(folder, task) if form in forms]
    # Without any file the choice form's is asked for, so that it is named.
    for form in there or ["choice"] * named:
        rows = [_moved(item, split_of(normal(item.question))) for item in loaders.tram(folder, task, form)]
        known = {normal(item.question) for item in rows}
        shown = counts["validation"] and (named or form in loaders.tram_forms(folder, task, shots=True))
        shots = loaders.tram(folder, task, form, shots=True) if shown else []
        shots = [item for item in shots if normal(item.question) not in known]
        for split in SPLITS:
            mine = [item for item in rows if item.split == split]
            found += [*(shots if split == "validation" else []), *_first(mine, len(mine))][: counts[split]]
    if not found and named:
        raise InputError(
            f"data.temporal.tram: no row of category {TASKS[task].category} in the {TASKS[task].file} files of {folder}, in the forms {', '.join(forms)}"
        )
    return found


def _moved(item: Item, split: Split) -> Item:
    return Item(**(item.record() | {"choices": item.choices, "split": split}))


def _first(items: Iterable[Item], count: int) -> list[Item]:
    """A fixed choice of so many items, spread over the file: by the digest of their ids. Repeated questions are taken once."""
    order = sorted(items, key=lambda item: hashlib.blake2b(item.id.encode(), digest_size=8).digest())
    once = {(normal(item.question), item.choices == ()): item for item in reversed(order)}
    return [item for item in order if once[normal(item.question), item.choices == ()] is item][:count]


def check(items: Sequence[Item]) -> None:
    """Refuse a data set in which a question, or an id, stands on two sides. Raises InputError naming the items."""
    sides: dict[str, list[Item]] = {split: [i for i in items if i.split == split] for split in SPLITS}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        shared = contamination(sides[one], sides[other])
        if shared:
            names = ", ".join(f"{a} and {b}" for a, b in shared[:3])
            raise InputError(
                f"data.temporal: {len(shared)} questions are both in {one} and in {other}, such as {names}; remove the copies from the folder"
            )
    twice = [name for name, number in Counter(item.id for item in items).items() if number > 1]
    if twice:
        raise InputError(
            f"data.temporal: the same id twice, such as {twice[0]}; give each published set's folder once"
        )


def read(manifest: Manifest, split: str) -> list[Item]:
    """The items of a split of this step's folder.

    Raises:
        InputError: a missing or damaged file (named, with what to do).
    """
    path = manifest.folder / f"{split}.jsonl"
    try:
        rows = files.json_lines(path)
        return [Item(**(row | {"choices": tuple(row["choices"])})) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: missing or damaged ({reason}); delete {path_of(manifest.folder)} and run the temporal step again"
        ) from error
