"""Step `science`: draw the items of `sciqa-dcf` and write them as an lm-eval task folder, `tasks/`, with `stats.json`."""

import logging
from collections import Counter
from typing import Any

from moesaic.errors import InputError
from moesaic.flow import files
from moesaic.flow.step import Context, Result

log = logging.getLogger("moesaic.science")


def run(context: Context) -> Result:
    """Same settings, same bytes. Metrics: rows by task.

    Raises:
        InputError: astropy is not installed.
    """
    try:
        import astropy  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "data.science: the answers are computed with astropy; pip install -e '.[science]' in the clone"
        ) from error
    from moesaic.evaluate.science import export, generate
    from moesaic.flow.progress import Progress

    settings = context.settings["science"]
    progress = Progress(context.name, len(generate.SPLITS) + 1, "splits")
    items: dict[str, list[generate.Item]] = {}
    for split in generate.SPLITS:
        items[split] = generate.items(split, settings["items"], settings["seed"])
        progress.update(1)
    train = generate.training(settings["train"], settings["seed"], items["id"])
    progress.update(1)
    with files.atomic_path(context.out / "tasks") as folder:
        tasks = export.write(folder, items, train, settings["max_tokens"])
    mistakes: dict[str, Any] = {
        split: dict(sorted(Counter(name for item in found for name in item.mistakes if name).items()))
        for split, found in items.items()
    }
    files.write_json(
        context.out / "stats.json", {"lm_eval": tasks, "distractors": mistakes, "train": len(train)}
    )
    return Result(["tasks", "stats.json"], {"tasks": tasks, "train": len(train)})
