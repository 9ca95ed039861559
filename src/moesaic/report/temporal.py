"""Questions about time: the means by kind, and every task beside its chance level."""

import re
from html import escape

from moesaic.evaluate.temporal.tasks import TASKS
from moesaic.report.cells import NOTHING, interval, number
from moesaic.report.gather import Gathered
from moesaic.report.tables import Table

NAME = re.compile(r"temporal_(?P<task>shift_short|.+?)(?P<short>_short)?(?:@(?P<shots>\d+))?")
"""The task `shift_short` has the short form's ending in its own name."""
KINDS = ("math_time", "pure_time", "out_of_domain")


def means(run: Gathered) -> Table | None:
    """The mean accuracy over the tasks of each kind, one column per model; None where the suite was not run."""
    return _table(
        run,
        True,
        "Questions about time: mean accuracy over the tasks of a kind in %, 95 % interval over items within their task.",
    )


def tasks(run: Gathered) -> Table | None:
    """The same for every task."""
    return _table(
        run,
        False,
        "Every temporal task: accuracy in %, 95 % interval. A model whose interval holds the chance level has not shown that it can do the task.",
    )


def _table(run: Gathered, summary: bool, caption: str) -> Table | None:
    names: dict[str, None] = {}
    for point in run.points:
        names |= dict.fromkeys(
            task for task, metric in point.scores if task.startswith("temporal_") and metric == "acc"
        )
    rows = []
    for name in names:
        found = NAME.fullmatch(name)
        assert found is not None
        if (found["task"] in KINDS) != summary:
            continue
        first = next(point.scores[name, "acc"] for point in run.points if (name, "acc") in point.scores)
        kind = TASKS[found["task"]].kind if found["task"] in TASKS else "out-of-domain"
        label = found["task"].replace("_", "-" if summary else " ")
        chance = number(100 * first["chance"], 1) if first["chance"] is not None else NOTHING
        rows.append(
            [
                escape(label), *([] if summary else [kind]), "short answer" if found["short"] else "multiple choice", found["shots"] or "0",
                str(first["n"]), chance, *(interval(point.score(name, "acc"), 1, 100) for point in run.points),
            ]
        )  # fmt: skip
    if not rows:
        return None
    head = ["kind" if summary else "task", *([] if summary else ["kind"]), "form", "shots", "n", "chance"]
    head += [escape(point.label).replace("/", "<br>") for point in run.points]
    return Table(caption, head, rows, text=(0, 1) if summary else (0, 1, 2))
