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
from moesaic.evaluate.reliability import metrics
from moesaic.flow import files, manifest
from moesaic.flow.manifest import Manifest

FLOOR_DRAWS = 200
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
    identity: str,
) -> Found:
    """Evaluate all tasks, zero-shot, with evaluate.items, batch and bootstrap. Finished tasks are kept under the identity.

    Raises:
        InputError: instructions are to go through a chat template and the tokenizer has none; damaged files.
    """
    manifest.verify(source, ["tasks/", "stats.json"])
    stats = files.read_json(source.folder / "stats.json")
    known: dict[str, dict[str, Any]] = stats["lm_eval"]
    told = [name for name, facts in known.items() if facts["kind"] in ("harmful", "harmless")]
    if told and stats["chat"] and not tokenizer.chat_template:
        raise InputError(
            "data.reliability.prompt: chat, but the model's tokenizer has no chat template; set it to instruction, or give model.chat_template"
        )
    found: list[TaskScores] = []
    for names, chat in ((told, stats["chat"]), ([name for name in known if name not in told], False)):
        mine = settings | {"tasks": sorted(names), "include_path": None, "shots": 0}
        found += harness.run(
            model, tokenizer, mine, source.folder / "tasks", work, seed, identity=identity, chat=chat
        )
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
    bins = {item.task: reliability_bins(item) for item in scores if "confidence" in item.items}
    report = {key: stats[key] for key in ("sets", "missing")} | {"tasks": known, "bins": bins}
    return Found(made, report)


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
            metric = calibration([(item.items["confidence"][None], item.items["acc"][None])], resamples, rng)
        out.append(metric)
    if facts.get("pairs"):
        both = pairs(item.items["acc"])
        if len(both):
            rng = bootstrap.generator(seed, f"{item.task}/acc_both")
            out.append(Metric("acc_both", bootstrap.mean(both, resamples, rng), BOTH))
    return replace(item, metrics=out)


def pairs(right_N: np.ndarray) -> np.ndarray:
    """1 where both items of a pair (0 and 1, 2 and 3 ...) are right [N // 2]; a last item without its partner is left out."""
    whole = right_N[: len(right_N) // 2 * 2].reshape(-1, 2)
    return np.asarray(whole.min(1))


def calibration(
    blocks: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int, rng: np.random.Generator
) -> Metric:
    """ECE over all items with its interval, and as chance what a perfectly calibrated model would show on so few.

    Args:
        blocks: confidence and right [F, N] of a set's N items in F forms; an item is drawn with all its forms.
    """
    confidence_I, right_I = (np.concatenate([block[i].ravel() for block in blocks]) for i in (0, 1))
    value = float(binned_error(confidence_I[None], right_I[None])[0])
    ideal = (rng.random((FLOOR_DRAWS, len(confidence_I))) < confidence_I).astype(np.float64)
    floor = float(binned_error(np.broadcast_to(confidence_I, ideal.shape), ideal).mean())
    if all(block[0].shape[1] < 2 for block in blocks):
        return Metric("ece", bootstrap.Estimate(value, None, None, len(confidence_I)), floor)
    drawn: list[list[np.ndarray]] = [[], []]
    for block in blocks:
        n = block[0].shape[1]
        rows_RN = rng.integers(0, n, size=(resamples, n))
        for part, values_FN in zip(drawn, block, strict=True):
            part.append(values_FN[:, rows_RN].swapaxes(0, 1).reshape(resamples, -1))
    samples = binned_error(np.concatenate(drawn[0], axis=1), np.concatenate(drawn[1], axis=1))
    return Metric(
        "ece", bootstrap.Estimate(value, *bootstrap.around(value, samples), len(confidence_I)), floor
    )


def binned_error(confidence_RN: np.ndarray, right_RN: np.ndarray) -> np.ndarray:
    """metrics.ece of each row, [R]."""
    bins = metrics.BINS
    cell_RN = np.clip(np.ceil(confidence_RN * bins).astype(np.int64) - 1, 0, bins - 1)
    rows, n = cell_RN.shape
    index = (cell_RN + bins * np.arange(rows)[:, None]).ravel()
    gap = np.bincount(index, weights=(confidence_RN - right_RN).ravel(), minlength=rows * bins)
    return np.asarray(np.abs(gap.reshape(rows, bins)).sum(1) / n)


def reliability_bins(item: TaskScores) -> list[dict[str, float]]:
    """For the plot: items, mean confidence and accuracy of each bin that holds any."""
    confidence, right = item.items["confidence"], item.items["acc"]
    cells = np.array([metrics.bin_of(float(value)) for value in confidence])
    return [
        {
            "n": int((cells == i).sum()),
            "confidence": round(float(confidence[cells == i].mean()), 6),
            "accuracy": round(float(right[cells == i].mean()), 6),
        }
        for i in range(metrics.BINS)
        if (cells == i).any()
    ]


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
            estimate = bootstrap.difference([_stratum(clean)], [_stratum(shifted)], resamples, rng)
        else:
            estimate = contrast([clean], [shifted], resamples, rng)
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
    return f"reliability/{facts['axis']}"


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
        estimate = bootstrap.macro(strata, resamples, bootstrap.generator(seed, name))
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
            )
            out.append(_one(f"reliability/{axis}_drop", "acc_drop", estimate))
        elif against:
            clean = found[known[against[0]]["against"]].items["acc"]
            estimate = contrast([clean], [found[n].items["acc"] for n in against], resamples, rng)
            out.append(_one(f"reliability/{axis}_drop", "acc_drop", estimate))
    calibrated = [item for item in found.values() if "confidence" in item.items]
    if calibrated:
        blocks = [
            (
                np.stack([item.items["confidence"] for item in same]),
                np.stack([item.items["acc"] for item in same]),
            )
            for same in _by_cluster(calibrated)
        ]
        metric = calibration(blocks, resamples, bootstrap.generator(seed, "reliability/calibration"))
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
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], resamples: int, rng: np.random.Generator
) -> bootstrap.Estimate:
    """Mean over the first tasks minus mean over the second; every task is resampled on its own (nothing is shared)."""
    value, samples_R, n = 0.0, np.zeros(resamples), 0
    for side, sign in ((first, 1.0), (second, -1.0)):
        for values in side:
            top, bottom = _stratum(values)
            sums_RC = bootstrap.resampled_sums(np.stack([top, bottom]), resamples, rng)
            value += sign * float(values.mean()) / len(side)
            samples_R += sign * sums_RC[:, 0] / sums_RC[:, 1] / len(side)
            n += len(values)
    return bootstrap.Estimate(value, *bootstrap.interval(samples_R), n)


def _stratum(values: np.ndarray) -> bootstrap.Stratum:
    return values, np.ones(len(values))
