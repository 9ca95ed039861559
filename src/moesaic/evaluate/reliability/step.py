"""Step `reliability`: read the sets that can be had, and write them as an lm-eval task folder, with the texts that routing is measured on.

Writes tasks/ (see lm_tasks.py), texts.jsonl ({group, number, text} per line), with attacks attack.jsonl ({number, sentence, label, synonyms}) and
stats.json, where what is missing is listed.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.errors import InputError
from moesaic.evaluate.reliability import attacked, attacks, lm_tasks, synonyms, task_files
from moesaic.evaluate.reliability.readers import Row
from moesaic.evaluate.reliability.sets import SETS, Loaded, load, wanted
from moesaic.flow import files
from moesaic.flow.progress import Progress
from moesaic.flow.step import Context, Result
from moesaic.schema import Reliability

log = logging.getLogger("moesaic.reliability")


def run(context: Context) -> Result:
    """Same settings and same sources, same bytes. Metrics: where each set came from, its tasks and rows, and what is missing.

    Raises:
        InputError: a package that cannot be fetched, or a file that is damaged or laid out otherwise.
    """
    settings = Reliability.model_validate(context.settings["reliability"])
    names = wanted(settings.sets)
    progress = Progress(context.name, len(names), "sets")
    found: dict[str, Loaded] = {}
    missing: dict[str, str] = {}
    for name in names:
        loaded = load(name, settings.folder, settings.source)
        if isinstance(loaded, Loaded):
            found[name] = loaded
        else:
            missing[name] = loaded
        progress.update(1, name)
    raw = settings.model_dump(mode="json")
    made = []
    for name, loaded in found.items():
        try:
            made += lm_tasks.tasks(name, loaded.rows, raw)
        except (ValueError, KeyError, IndexError) as error:
            raise InputError(
                f"data.reliability: {name} ({loaded.source}): laid out otherwise ({error!r})"
            ) from error
    with files.atomic_path(context.out / "tasks") as folder:
        tasks = task_files.write(folder, context.out / "tasks", made, settings.answer_tokens)
    lines = texts({name: loaded.rows for name, loaded in found.items()}, settings.texts)
    files.write_lines(context.out / "texts.jsonl", lines)
    sets = {
        name: {
            "axis": SETS[name].axis,
            "about": SETS[name].about,
            "source": loaded.source,
            "rows": len(loaded.rows),
        }
        for name, loaded in found.items()
    }
    absent = {
        name: {"axis": SETS[name].axis, "about": SETS[name].about, "add": how}
        for name, how in missing.items()
    }
    stats = {"sets": sets, "missing": absent, "lm_eval": tasks, "chat": settings.prompt == "chat"}
    outputs = ["tasks", "texts.jsonl", "stats.json"]
    (context.out / attacked.ROWS).unlink(missing_ok=True)
    if settings.attacks and "sentences" in found:
        files.write_lines(context.out / attacked.ROWS, targets(found["sentences"].rows, settings))
        stats["attacks"] = list(dict.fromkeys(settings.attacks))
        outputs.append(attacked.ROWS)
    elif settings.attacks:
        missing["attacks"] = "data.reliability.sets: name `sentences`, whose sentences are attacked"
        absent["attacks"] = {
            "axis": "adversarial", "about": "live attacks", "add": missing["attacks"],
        }  # fmt: skip
    files.write_json(context.out / "stats.json", stats)
    for name, how in missing.items():
        log.warning("%s: %s is missing; to add it: %s", context.name, name, how)
    metrics = {
        "sets": {name: item["source"] for name, item in sets.items()},
        "missing": missing,
        "tasks": {name: facts["rows"] for name, facts in tasks.items()},
    }
    return Result(outputs, metrics)


def targets(rows: Sequence[Row], settings: Reliability) -> list[dict[str, Any]]:
    """The sentences to be attacked, the first of the task `rel_sentences_plain`, each with the synonyms of its words where an attack uses them."""
    count = min(settings.attack_items, settings.items)
    chosen = lm_tasks.styled(rows, settings.items)["plain"][:count]
    known: dict[str, list[str]] = {}
    if "pwws" in settings.attacks:
        known = synonyms.of(word.lower() for row in chosen for word in attacks.WORD.findall(row["sentence"]))
    return [
        {
            "number": i,
            "sentence": row["sentence"],
            "label": row["label"],
            "synonyms": {
                word: known[word]
                for word in sorted({word.lower() for word in attacks.WORD.findall(row["sentence"])})
                if word in known
            },
        }
        for i, row in enumerate(chosen)
    ]


def texts(found: Mapping[str, Sequence[Row]], count: int) -> list[dict[str, Any]]:
    """Sentences for routing: `plain` and each style of the same sentences, and each domain's own. DecodingTrust's where it is there."""
    out: list[dict[str, Any]] = []
    style = next((name for name in ("decodingtrust", "sentences") if name in found), None)
    groups: dict[str, list[Row]] = {}
    if count and style is not None:
        groups |= lm_tasks.styled(found[style], count)
    if count and "sentiment" in found:
        domains = lm_tasks.by_domain(found["sentiment"], count)
        groups |= {f"domain/{name}": rows for name, rows in domains.items()}
    for group, rows in groups.items():
        out += [
            {"group": group, "number": i, "text": " ".join(row["sentence"].split())}
            for i, row in enumerate(rows)
        ]
    return out
