"""What a stage hands to the training loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moesaic.data.mixtures import Mixture
from moesaic.flow.manifest import Manifest
from moesaic.flow.step import Context
from moesaic.train.objectives import Trainee
from moesaic.train.streams import Stream, collate, count_targets


class Watch(Protocol):
    """Looks at what each step logs; its state goes into the checkpoint."""

    def check(self, values: Mapping[str, float]) -> None:
        """After a step. Raises InputError to stop the stage for good."""

    def enough(self, steps: int, values: Mapping[str, float]) -> bool:
        """True to end the stage after this step. Args: steps: done so far."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Job:
    """One training stage."""

    context: Context
    settings: dict[str, Any]
    """schema.Training as a dict."""
    trainee: Trainee
    mixture: Mixture
    train: Stream
    validation: Stream
    tokenizer_from: Path
    """Model folder whose tokenizer goes with the result."""
    reference: Manifest | None = None
    """The dense parent, when the mixture compares with its losses."""
    collate: Callable[..., Any] = collate
    """Rows of the streams to a batch of the trainee."""
    count: Callable[..., int] = count_targets
    """What the step's loss is a mean over: targets, or pairs."""
    watch: Watch | None = None
