"""What ran: settings, versions, and when, where and from what each step that the report reads was made."""

from collections.abc import Sequence
from html import escape

from moesaic.config import flatten
from moesaic.report.cells import NOTHING, code, duration, percent, setting
from moesaic.report.gather import Gathered, StepRecord
from moesaic.report.html import table
from moesaic.report.tables import Table

PREPARE = "prepare/"


def settings(run: Gathered) -> str:
    """Section: what the variants differ in, then all settings of every step."""
    out = [table(differences(run), "settings")]
    shared = [step for step in run.steps if step.key == "dense" or step.key.startswith(PREPARE)]
    for step in [*shared, *(step for step in run.steps if step.key == "dense/evaluate")]:
        out.append(
            f"<details><summary>{escape(step.key)}</summary>{table(settings_table(run, [step]), 'settings')}</details>"
        )
    for stage in run.stages:
        steps = [step for variant in run.variants for step in run.steps if step.key == f"{variant}/{stage}"]
        if steps:
            out.append(
                f"<details><summary>{stage}</summary>{table(settings_table(run, steps), 'settings')}</details>"
            )
    return "\n".join(out) + "\n"


def steps(run: Gathered) -> str:
    """Section: proofs of the constructions, versions, and every step's record."""
    versions: dict[str, set[str]] = {}
    for step in run.steps:
        for name, value in step.run.get("versions", {}).items():
            versions.setdefault(name, set()).add(value)
        if "python" in step.run:
            versions.setdefault("python", set()).add(step.run["python"])
    words = ", ".join(
        f"{escape(name)} {escape(' and '.join(sorted(found)))}" for name, found in versions.items()
    )
    facts = {step.key: step.manifest.metrics for step in run.steps}
    proofs = ""
    for variant, proof in run.proofs.items():
        if not proof:
            continue
        proofs += (
            f"<p>{escape(variant)}: before routers and refit, with all experts on and unit scores, the largest logit difference to the parent was "
            f"{proof['max_logit_error']:.2g} (allowed {proof['tolerance']:.2g})"
        )
        error = facts[f"{variant}/construct"].get("mean_relative_error")
        proofs += (
            f"; the split layers' mean relative output error is {percent(error)}" if error is not None else ""
        )
        proofs += ".</p>\n"
    return f'{proofs}<p class="quiet">Versions: {words}.</p>\n' + table(steps_table(run), "sticky")


def differences(run: Gathered) -> Table | None:
    """Settings in which the variants differ, one column per variant; of the steps of rounds too."""
    if not run.differ:
        return None
    cells = [
        [f"<code>{escape(key)}</code>", *(setting(values[name]) for name in run.variants)]
        for key, values in run.differ.items()
    ]
    return Table(
        "Settings in which the variants differ.",
        ["key", *map(escape, run.variants)],
        cells,
        text=range(len(run.variants) + 1),
    )


def settings_table(run: Gathered, steps: Sequence[StepRecord]) -> Table:
    """All settings of a step; several variants side by side, differing rows marked."""
    flat = [flatten(step.manifest.settings, ".") for step in steps]
    keys = list(dict.fromkeys(key for item in flat for key in item))
    cells = [[f"<code>{escape(key)}</code>", *(setting(item.get(key)) for item in flat)] for key in keys]
    strong = [i for i, key in enumerate(keys) if len({repr(item.get(key)) for item in flat}) > 1]
    head = ["key", *(escape(step.key.split("/")[0] if len(steps) > 1 else "value") for step in steps)]
    return Table("", head, cells, text=range(len(steps) + 1), strong=strong)


def steps_table(run: Gathered) -> Table:
    """When, where and from what each step was made."""
    cells = []
    for step in run.steps:
        record = step.run
        attempts = record.get("attempts", 1)
        cells.append([
            escape(step.key), escape(record.get("started", "")[:19].replace("T", " ")), duration(record.get("seconds")),
            str(attempts) if attempts == 1 else f"<b>{attempts}</b>", escape(record.get("host", "")),
            escape(str(record.get("slurm_job_id") or "")) or NOTHING, code((record.get("git_commit") or "")[:12]),
            code(step.manifest.settings_digest[:12]), f"{sum(o.bytes for o in step.manifest.outputs) / 1e6:,.1f}",
        ])  # fmt: skip
    head = [
        "step",
        "started (UTC)",
        "time",
        "attempts",
        "host",
        "Slurm job",
        "commit",
        "settings",
        "output MB",
    ]
    return Table(
        "The steps that this page is made from. Sampling, rating, scoring, rounds before the last, teachers and shards of evaluations keep theirs in the "
        "run.json of their folders. Settings are SHA-256 digests (first 12 digits).",
        head,
        cells,
        text=(0, 1, 4, 5, 6, 7),
    )
