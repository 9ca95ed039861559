"""The reliability suite of an evaluation: every task of the step's folder, what is lost under attack and shift, calibration, and the axes' means.

Shapes: N items, R resamples, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.errors import InputError
from moesaic.evaluate import bootstrap, harness
from moesaic.evaluate.harness import Metric, TaskScores
from moesaic.evaluate.kept import Identity
from moesaic.evaluate.reliability import asked, attacked, calibration, contrasted
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest

BOTH = round(1 / 9, 6)
"""Guessing three verdicts right on both sides of a pair; a constant answer never is."""


@dataclass(frozen=True)
class Found:
    """What the suite gives."""

    tasks: list[TaskScores]
    report: dict[str, Any]
    """reliability.json: sets and what is missing, facts of each task, and the bins of the calibration."""


def run(
    model: Any,
    tokenizer: Any,
    settings: dict[str, Any],
    source: Manifest,
    work: Path,
    seed: int,
    identity: Identity,
) -> Found:
    """Evaluate all tasks, zero-shot, with evaluate.items, batch and bootstrap. Finished tasks are kept under the identity.

    Raises:
        InputError: instructions are to go through a chat template and the tokenizer has none; damaged files.
    """
    manifest.verify(source, ["tasks/", "stats.json"])
    stats = files.read_json(source.folder / "stats.json")
    known: dict[str, dict[str, Any]] = stats["lm_eval"]
    if told(known) and stats["chat"] and not tokenizer.chat_template:
        raise InputError(
            "data.reliability.prompt: chat, but the model's tokenizer has no chat template; set it to instruction, or give model.chat_template"
        )
    found: list[TaskScores] = []
    for call in calls(settings, source):
        made = call.run(model, tokenizer, settings, work, seed, identity)
        found += made if call.dola is None else contrasted.named(made)
    if settings["reliability"]["dola"] is not None:
        known = known | contrasted.facts(known)
    resamples = settings["bootstrap"]
    # Not multiple_choice: these have means of their own, and are not part of mc/average.
    scores = [
        replace(
            _metrics(item, known[item.task], resamples, seed),
            multiple_choice=False,
            group=group_of(item.task, known),
            cluster=cluster_of(item.task, known),
        )
        for item in found
    ]
    by_name = {item.task: item for item in scores}
    made = scores + drops(by_name, known, resamples, seed) + means(by_name, known, resamples, seed)
    made += contrasted.gains(by_name, known, resamples, seed)
    bins = {
        item.task: calibration.reliability_bins(item)
        for item in scores
        if "confidence" in item.items and "plain" not in known[item.task]
    }
    report = {key: stats[key] for key in ("sets", "missing")} | {"tasks": known, "bins": bins}
    if methods := stats.get("attacks"):
        manifest.verify(source, [attacked.ROWS])
        turned, report["attacks"] = attacked.run(
            model, tokenizer, settings, source, methods, work, seed, identity.whole
        )
        made += turned
    return Found(made, report)


def told(known: dict[str, dict[str, Any]]) -> list[str]:
    """Tasks that are instructions."""
    return sorted(name for name, facts in known.items() if facts["kind"] in asked.KINDS)


def calls(settings: dict[str, Any], source: Manifest) -> list[harness.Call]:
    """What the suite evaluates: instructions, all others, and with DoLa the hallucination sets again."""
    stats = files.read_json(source.folder / "stats.json")
    known, folder = stats["lm_eval"], source.folder / "tasks"
    instructions = told(known)
    others = sorted(set(known) - set(instructions))
    plain = {"include_path": None, "shots": 0}
    found = [
        harness.Call("reliability", instructions, folder, plain, chat=stats["chat"]),
        harness.Call("reliability", others, folder, plain),
    ]
    dola = settings["reliability"]["dola"]
    if dola is not None:
        again = sorted(item["plain"] for item in contrasted.facts(known).values())
        found.append(harness.Call("reliability", again, folder, plain, dola=dola))
    return found


def texts(source: Manifest) -> dict[str, list[str]]:
    """Group -> texts of the step's texts.jsonl, in its order."""
    manifest.verify(source, ["texts.jsonl"])
    found: dict[str, list[str]] = {}
    for row in files.read_lines(source.folder / "texts.jsonl"):
        found.setdefault(row["group"], []).append(row["text"])
    return found


# ---------------------------------------------------------------- one task


def _metrics(item: TaskScores, facts: dict[str, Any], resamples: int, seed: int) -> TaskScores:
    """Chance beside the accuracy, our interval of the calibration error, and for contrast pairs how many are right on both sides."""
    out: list[Metric] = []
    for metric in item.metrics:
        if metric.name in ("acc", "exact"):
            metric = replace(metric, chance=facts["chance"])
        elif metric.name == "ece":
            rng = bootstrap.generator(seed, f"{item.task}/ece")
            metric = calibration.expected_error(
                [(item.items["confidence"][None], item.items["acc"][None])], resamples, rng
            )
        out.append(metric)
    if facts.get("pairs"):
        both = pairs(item.items["acc"])
        if len(both):
            rng = bootstrap.generator(seed, f"{item.task}/acc_both")
            out.append(Metric("acc_both", bootstrap.mean(both, resamples, rng, rate=True), BOTH))
    return replace(item, metrics=out)


def pairs(right_N: np.ndarray) -> np.ndarray:
    """1 where both items of a pair (0 and 1, 2 and 3 ...) are right [N // 2]; a last item without its partner is left out."""
    whole = right_N[: len(right_N) // 2 * 2].reshape(-1, 2)
    return np.asarray(whole.min(1))


# ---------------------------------------------------------------- drops and means


def drops(
    found: dict[str, TaskScores], known: dict[str, dict[str, Any]], resamples: int, seed: int
) -> list[TaskScores]:
    """Accuracy lost: on the same items in another form (paired), and in another domain (not paired)."""
    out = []
    for name, facts in known.items():
        other = facts.get("of", facts.get("against"))
        if other is None:
            continue
        clean, shifted = found[other].items["acc"], found[name].items["acc"]
        rng = bootstrap.generator(seed, f"{name}_drop")
        if "of" in facts:
            estimate = bootstrap.difference([_stratum(clean)], [_stratum(shifted)], resamples, rng, rate=True)
        else:
            estimate = contrast([([clean], [shifted])], resamples, rng)
        out.append(TaskScores(f"{name}_drop", [Metric("acc_drop", estimate, None)], {}, [], False))
    return out


def group_of(name: str, known: dict[str, dict[str, Any]]) -> str:
    """The mean that a task is part of; other for what shifted text is only compared with, and for open questions."""
    facts = known[name]
    if facts["axis"] == "safety":
        return "reliability/refusal" if facts["kind"] == "harmful" else "reliability/over_refusal"
    clean = any(name in (other.get("of"), other.get("against")) for other in known.values())
    if clean or facts["kind"] == "question":
        return "other"
    return f"reliability/{facts['axis']}" + (contrasted.END if "plain" in facts else "")


def cluster_of(name: str, known: dict[str, dict[str, Any]]) -> str:
    """The set, where its tasks are the same items in several forms; else the task."""
    return str(known[name]["set"]) if known[name]["kind"] in ("truth", "styled", "choice") else name


def means(
    found: dict[str, TaskScores], known: dict[str, dict[str, Any]], resamples: int, seed: int
) -> list[TaskScores]:
    """One row per axis: mean over its sets (of a set in several forms the mean over these, by item), items resampled within sets; drops beside.

    `reliability/refusal` is over harmful sets (higher is better), `reliability/over_refusal` over harmless ones (lower is better).
    """
    out = []

    def add(name: str, members: Sequence[str], metric: str) -> None:
        clusters = _by_cluster([found[task] for task in members])
        strata = [_stratum(_joined(same, metric)) for same in clusters]
        chances = [known[task]["chance"] for task in members]
        chance = None if None in chances else _mean_chance(clusters, known)
        estimate = bootstrap.macro(strata, resamples, bootstrap.generator(seed, name), rate=True)
        out.append(TaskScores(name, [Metric(metric, estimate, chance)], {}, [], False))

    groups: dict[str, list[str]] = {}
    for name in known:
        groups.setdefault(group_of(name, known), []).append(name)
    for group, members in groups.items():
        if group != "other":
            safety = group in ("reliability/refusal", "reliability/over_refusal")
            add(group, members, "refusal" if safety else "acc")
    for axis in ("adversarial", "style", "domain"):
        members = [name for name, facts in known.items() if facts["axis"] == axis]
        cleans = list(dict.fromkeys(known[n]["of"] for n in members if "of" in known[n]))
        against = [n for n in members if "against" in known[n]]
        rng = bootstrap.generator(seed, f"reliability/{axis}_drop")
        if cleans:
            shifted = [[found[n] for n in members if known[n].get("of") == clean] for clean in cleans]
            estimate = bootstrap.difference(
                [_stratum(found[clean].items["acc"]) for clean in cleans],
                [_stratum(_joined(items)) for items in shifted],
                resamples,
                rng,
                rate=True,
            )
            out.append(_one(f"reliability/{axis}_drop", "acc_drop", estimate))
        elif against:
            bases = list(dict.fromkeys(known[n]["against"] for n in against))
            pairs = [
                (
                    [found[base].items["acc"]],
                    [found[n].items["acc"] for n in against if known[n]["against"] == base],
                )
                for base in bases
            ]
            estimate = contrast(pairs, resamples, rng)
            out.append(_one(f"reliability/{axis}_drop", "acc_drop", estimate))
    # Contrasted scores are no model's probabilities.
    calibrated = [
        item for item in found.values() if "confidence" in item.items and "plain" not in known[item.task]
    ]
    if calibrated:
        blocks = [
            (
                np.stack([item.items["confidence"] for item in same]),
                np.stack([item.items["acc"] for item in same]),
            )
            for same in _by_cluster(calibrated)
        ]
        metric = calibration.expected_error(
            blocks, resamples, bootstrap.generator(seed, "reliability/calibration")
        )
        out.append(TaskScores("reliability/calibration", [metric], {}, [], False))
    return out


def _one(name: str, metric: str, estimate: bootstrap.Estimate) -> TaskScores:
    return TaskScores(name, [Metric(metric, estimate, None)], {}, [], False)


def _by_cluster(items: Sequence[TaskScores]) -> list[list[TaskScores]]:
    """Tasks that ask the same items in several forms, together."""
    found: dict[str, list[TaskScores]] = {}
    for item in items:
        found.setdefault(item.cluster, []).append(item)
    return list(found.values())


def _joined(items: Sequence[TaskScores], metric: str = "acc") -> np.ndarray:
    """Mean over tasks on the same items, by item [N]: one sentence in five styles is one unit, not five."""
    return np.asarray(np.mean([item.items[metric] for item in items], axis=0))


def _mean_chance(clusters: Sequence[Sequence[TaskScores]], known: dict[str, dict[str, Any]]) -> float:
    return float(np.mean([np.mean([known[item.task]["chance"] for item in same]) for same in clusters]))


def contrast(
    pairs: Sequence[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]],
    resamples: int,
    rng: np.random.Generator,
) -> bootstrap.Estimate:
    """Mean over sets of: mean over the first tasks minus mean over the second; every task is resampled on its own (nothing is shared)."""
    parts = [
        (sign / len(side) / len(pairs), _stratum(values))
        for sides in pairs
        for side, sign in zip(sides, (1.0, -1.0), strict=True)
        for values in side
    ]
    return bootstrap.unpaired(parts, resamples, rng)


def _stratum(values: np.ndarray) -> bootstrap.Stratum:
    return values, np.ones(len(values))
