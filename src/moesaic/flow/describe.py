"""What MLflow shows of a run beside its numbers: a name, a description, the datasets, and what was changed since the run before."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from moesaic.flow.manifest import Manifest

PREPARED = "prepare"
"""Folder of the data that later steps read."""
SHOWN = 40
"""Longest value in a list of changes, and how many changes a description lists."""
EXPERIMENT = """\
One run for each configuration (`moesaic.kind = workflow`), and below it one for each step.

To compare models, search `tags."moesaic.step" = 'evaluate' and tags."moesaic.superseded" = 'false'` and sort by `eval/text/average/bits_per_byte`.
"""
DOES = {
    "dense": "The dense parent as a folder that transformers loads.",
    "documents": "Text: repaired, filtered, deduplicated, split into training and validation.",
    "tokens": "Text as packed blocks of tokens.",
    "chat": "Conversations as tokens, with a loss mask on the answers.",
    "tasks": "Multiple-choice tasks in the format of lm-evaluation-harness.",
    "construct": "The dense parent becomes a Mixture of Experts; nothing is trained yet.",
    "pretrain": "Continual pre-training on text.",
    "tune": "Supervised fine-tuning on conversations; the loss is on the answers only.",
    "preference": "Preference tuning on pairs of answers.",
    "distill": "A student learns from a teacher's probabilities.",
    "teacher": "What the teacher says of every token: its likeliest continuations, kept for training.",
    "teacher_text": "The teacher's answers, for distillation.",
    "report": "Tables, figures, one page.",
}
"""Step -> what it does, in a line; an evaluation says what came out."""


def title(key: str) -> str:
    """Name of a step's run. The model comes first, so that a narrow column still tells evaluations apart: activation / pretrain / evaluate."""
    parts = key.split("/")
    if "evaluate" in parts[1:-1]:
        parts = [part for part in parts if part != "evaluate"] + ["evaluate"]
    return " / ".join(parts)


def changes(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    """What differs between two flattened configurations; a variant that is only in one of them is one line."""
    found: dict[str, None] = {}
    variants = [{key.split(".")[1] for key in keys if key.startswith("variants.")} for keys in (new, old)]
    for key in [*new, *(key for key in old if key not in new)]:
        if new.get(key) == old.get(key):
            continue
        first, _, rest = key.partition(".")
        name = rest.split(".")[0]
        if first == "variants" and (name in variants[0]) != (name in variants[1]):
            found[f"variant {name} {'added' if name in variants[0] else 'removed'}"] = None
        else:
            found[f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}"] = None
    return list(found)


def workflow_title(name: str, changed: list[str]) -> str:
    """Name of a workflow's run: the configuration's, and what is new in it: `default (distill.steps: 10 -> 20)`."""
    if not changed:
        return name
    more = f", {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{name} ({changed[0]}{more})"


def workflow_note(changed: str, verdict: str = "") -> str:
    """Description of a workflow's run: the report's sentence, once there is one, and what is new in the configuration."""
    return "\n\n".join(
        part for part in (verdict, changed and f"Changed since the run before: {changed}") if part
    )


def note(step: str, scores: list[dict[str, Any]]) -> str:
    """Description of a step's run."""
    found = {
        (item["task"], item["metric"]): item["value"] for item in scores if item.get("value") is not None
    }
    parts = []
    if (bits := found.get(("text/average", "bits_per_byte"))) is not None:
        parts.append(f"{bits:.3f} bits per byte on the trained domains")
    if (held_out := found.get(("text/held-out", "bits_per_byte"))) is not None:
        parts.append(f"{held_out:.3f} on the held-out ones")
    if (right := found.get(("mc/average", "acc"))) is not None:
        parts.append(f"{100 * right:.1f} % of the multiple-choice questions right")
    return "; ".join(parts) if parts else DOES.get(step, "")


def datasets(inputs: Mapping[str, Manifest], digests: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Prepared data that a step read: name, digest of its manifest, where it lies, its counts."""
    for name, read in inputs.items():
        if read.folder.parent.name == PREPARED and name in digests:
            yield {
                "name": read.folder.name,
                "digest": digests[name][:36],
                "source_type": "local",
                "source": json.dumps({"uri": str(read.folder)}),
                "profile": json.dumps(read.metrics),
            }


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value if len(value) <= SHOWN else f"{value[: SHOWN - 3]}..."
