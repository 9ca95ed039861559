"""The attacks of an evaluation (attacks.py) on sentences whose sentiment the model judges by likelihood: accuracy before and after, success, queries.

Every attacked sentence is kept in work/attacks, so that a killed evaluation goes on with the next one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic import config
from moesaic.evaluate import bootstrap
from moesaic.evaluate.harness import Metric, TaskScores
from moesaic.evaluate.reliability import attacks, lm_tasks, metrics
from moesaic.flow import files
from moesaic.flow.manifest import Manifest
from moesaic.generate import parts

VERSION = 2
"""Raised when the same settings give other attacks."""
ROWS = "attack.jsonl"
SHOWN = 5
"""Sentences of each attack in reliability.json."""


def run(
    model: Any, tokenizer: Any, settings: dict[str, Any], source: Manifest, methods: Sequence[str], work: Path,
    seed: int, identity: str,
) -> tuple[list[TaskScores], dict[str, Any]]:  # fmt: skip
    """Attack the rows of the step's attack.jsonl with each method; evaluate.items limits them.

    Args:
        identity: digest of the model's weights and the tasks' data.

    Returns:
        `attack/METHOD` of each, and for the report {method: [{before, after}]}.

    Raises:
        Interrupted: asked to stop; sentences that are done are kept.
    """
    from moesaic.evaluate.prefix import SharedPrefixLM

    rows = list(files.read_lines(source.folder / ROWS))[: settings["items"]]
    lm = SharedPrefixLM(model, tokenizer, settings["batch"])
    keys = [str(row["number"]) for row in rows]
    scores, shown = [], {}
    for method in methods:
        about = {
            "what": "attack", "version": VERSION, "method": method, "model": identity, "batch": settings["batch"],
            "rows": config.digest(rows), "torch": torch.__version__,
        }  # fmt: skip
        kept = parts.Work(f"attack {method}", "sentences", about, keys, 1, cache=work / "attacks")

        def one(numbers: range, method: str = method) -> list[dict[str, Any]]:
            return [
                {"id": keys[i]} | attacks.attack(method, rows[i], asking(lm, rows[i]["label"]))
                for i in numbers
            ]

        found = parts.make(kept, one)
        scores.append(summary(f"attack/{method}", [row["label"] for row in rows], found, settings, seed))
        turned = [i for i, item in enumerate(found) if item["clean"] and not item["attacked"]]
        shown[method] = [{"before": rows[i]["sentence"], "after": found[i]["text"]} for i in turned[:SHOWN]]
    return scores, shown


def asking(lm: Any, label: int) -> attacks.Ask:
    """The model as the attack sees it: the two choices' probabilities, as the task of the same sentences scores them."""

    def ask(texts: Sequence[str]) -> list[tuple[float, bool]]:
        prompts = [lm_tasks.SENTIMENT.format(sentence=text) for text in texts]
        pairs = [(prompt, f" {choice}") for prompt in prompts for choice in lm_tasks.VERDICTS]
        found = lm.log_likelihoods([(pair, *lm._encode_pair(*pair)) for pair in pairs])
        count = len(lm_tasks.VERDICTS)
        out = []
        for start in range(0, len(found), count):
            values = found[start : start + count]
            out.append((metrics.probabilities(values)[label], values.index(max(values)) == label))
        return out

    return ask


def summary(
    name: str, labels: Sequence[int], found: Sequence[dict[str, Any]], settings: dict[str, Any], seed: int
) -> TaskScores:
    """Accuracy before and after over all sentences; success and queries over those judged rightly; changed words over those that turned.

    What has no sentence to be taken over is left out.
    """
    values = {key: np.array([float(item[key]) for item in found]) for key in ("clean", "attacked", "queries")}
    share = np.array([item["changed"] / max(1, item["words"]) for item in found])
    right = values["clean"] == 1
    turned = right & (values["attacked"] == 0)
    constant = max(labels.count(label) for label in set(labels)) / len(labels)

    def metric(key: str, numbers: np.ndarray, chance: float | None = None) -> list[Metric]:
        if not len(numbers):
            return []
        rng = bootstrap.generator(seed, f"{name}/{key}")
        rate = key in ("acc_clean", "acc_attacked", "attack_success")
        return [Metric(key, bootstrap.mean(numbers, settings["bootstrap"], rng, rate), chance)]

    rows = [
        *metric("acc_clean", values["clean"], round(constant, 6)),
        *metric("acc_attacked", values["attacked"]),
        *metric("attack_success", turned[right].astype(float)),
        *metric("queries", values["queries"][right]),
        *metric("changed_words", share[turned]),
    ]
    items = {"acc_clean": values["clean"], "acc_attacked": values["attacked"]}
    return TaskScores(name, rows, items, [item["id"] for item in found], False, group="other")
