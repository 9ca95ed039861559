"""All data of a run."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from moesaic.schema.base import Positive, Strict
from moesaic.schema.data import Chat, Clean, Domain, Science, Temporal
from moesaic.schema.images import Images
from moesaic.schema.reliability import Reliability

RESERVED = ("average", "held-out")
"""Names of means over domains among the scores."""


def _free(domains: dict[str, Domain]) -> dict[str, Domain]:
    for name in domains:
        if name in RESERVED:
            raise ValueError(f"{name} is the name of a mean over domains; take another")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"{name}: names are parts of file names; letters, digits, _, . and - alone, no . or - first"
            )
    return domains


class Data(Strict):
    """All data of a run."""

    domains: Annotated[dict[str, Domain], Field(min_length=1), AfterValidator(_free)]
    """Named parts of the corpus; the names are parts of file names."""
    clean: Clean = Clean()
    """Which documents are kept."""
    block: Annotated[int, Field(ge=16)] = 512
    """Tokens in a packed block."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of each domain's documents kept for validation (chosen by document, never by block)."""
    max_train_tokens: Positive | None = None
    """Per domain: stop tokenising training text after this many tokens."""
    max_validation_tokens: Positive | None = None
    """Per domain: stop tokenising validation text after this many tokens."""
    chat: Chat = Chat()
    temporal: Temporal | None = None
    """Questions about time; null: none are made."""
    science: Science | None = None
    """Numeric questions on magnetic fields; null: none are made."""
    reliability: Reliability | None = None
    """Sets of the reliability suite; null: none are read."""
    images: Images | None = None
    """Pictures as tokens, and conversations with pictures beside those of `chat`; {} takes the defaults; null: text only."""
