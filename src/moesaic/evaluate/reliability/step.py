"""Step `reliability`: read the sets that can be had, and write them as an lm-eval task folder, with the texts that routing is measured on.

Writes tasks/ (see lm_tasks.py), texts.jsonl ({group, number, text} per line) and stats.json, where what is missing is listed.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.evaluate.reliability import lm_tasks
from moesaic.evaluate.reliability.readers import Row
from moesaic.evaluate.reliability.sets import SETS, Loaded, load
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
    wanted = list(SETS) if settings.sets == "all" else list(dict.fromkeys(settings.sets))
    progress = Progress(context.name, len(wanted), "sets")
    found: dict[str, Loaded] = {}
    missing: dict[str, str] = {}
    for name in wanted:
        loaded = load(name, settings.folder, settings.source)
        if isinstance(loaded, Loaded):
            found[name] = loaded
        else:
            missing[name] = loaded
        progress.update(1, name)
    raw = settings.model_dump(mode="json")
    made = [task for name, loaded in found.items() for task in lm_tasks.tasks(name, loaded.rows, raw)]
    with files.atomic_path(context.out / "tasks") as folder:
        tasks = lm_tasks.write(folder, context.out / "tasks", made, settings.answer_tokens)
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
    chat = settings.prompt == "chat"
    files.write_json(
        context.out / "stats.json", {"sets": sets, "missing": absent, "lm_eval": tasks, "chat": chat}
    )
    for name, how in missing.items():
        log.warning("%s: %s is missing; to add it: %s", context.name, name, how)
    metrics = {
        "sets": {name: item["source"] for name, item in sets.items()},
        "missing": missing,
        "tasks": {name: facts["rows"] for name, facts in tasks.items()},
    }
    return Result(["tasks", "texts.jsonl", "stats.json"], metrics)


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
