"""One question about time, generated or read from a published file."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Item:
    """A question with its gold answer."""

    id: str
    """Unique and stable: task, split and number, or the published file's own id."""
    task: str
    kind: Literal["math-time", "pure-time"]
    """math-time: answered by arithmetic on dates, times and durations; pure-time: by knowledge of time in the world (Timo, section 2)."""
    question: str
    """The question as the model sees it; choices are written below it."""
    answer: str
    """Gold: the short answer, or the letter of the right choice."""
    choices: tuple[str, ...] = ()
    """Texts of the choices A, B, C ...; empty: a short answer is asked for."""
    split: Literal["train", "validation", "test"] = "test"
    question_id: str = ""
    """Of one candidate answer among several that are asked one by one: what the candidates of the same question share; empty: the item stands alone."""

    def record(self) -> dict[str, Any]:
        """As a JSON record."""
        found = asdict(self) | {"choices": list(self.choices)}
        return found if self.question_id else {k: v for k, v in found.items() if k != "question_id"}
