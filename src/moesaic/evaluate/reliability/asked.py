"""The instructions that the reliability suite puts to a model, for what is trained: a model is not tested on what it was tuned on.

They are read from the sets and not from the step `reliability`, so that another set, an attack or a longer answer is no reason to tune again.
"""

from collections.abc import Mapping
from typing import Any

from moesaic.evaluate.reliability.lm_tasks import first
from moesaic.evaluate.reliability.sets import SETS, Loaded, load, wanted

KINDS = ("harmful", "harmless")
"""Of sets that are instructions."""


def settings(own: Mapping[str, Any]) -> dict[str, Any]:
    """What they depend on. Args: own: schema.Reliability as a dict. Returns: {"reliability": for `instructions`}; empty where no instructions are asked."""
    folder = own["folder"]
    chosen = {
        # its files are watched by their names (flow/local_data.py), not whatever else lies in the folder
        name: {"kind": "files", "path": f"{folder}/{SETS[name].folder}"} if folder is not None else None
        for name in wanted(own["sets"])
        if SETS[name].kind in KINDS
    }
    if not chosen:
        return {}
    where = {"source": own["source"], "items": own["items"]} | (
        {"below": folder} if folder is not None else {}
    )
    return {"reliability": {"sets": chosen, **where}}


def instructions(own: Mapping[str, Any] | None) -> set[str]:
    """The instructions, as `compared` writes them; of a set that cannot be had, none: it is not asked either.

    Args:
        own: the section of `settings`, or None.

    Raises:
        InputError: as sets.load.
    """
    if own is None:
        return set()
    found = set()
    for name in own["sets"]:
        loaded = load(name, own.get("below"), own["source"])
        if isinstance(loaded, Loaded):
            found |= {compared(row["instruction"]) for row in first(loaded.rows, own["items"])}
    return found


def compared(text: str) -> str:
    """An instruction as it is compared: without case, and with single spaces."""
    return " ".join(text.lower().split())
