"""What decodes: transformers in this process, or vLLM in one beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from moesaic.generate import decode
from moesaic.generate.decode import Answer, Decoding
from moesaic.generate.engine_vllm import Vllm


class Engine(Protocol):
    """Answers to prompts, of one model."""

    whole: bool
    """It makes its own batches: give it all prompts at once."""

    def decode(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], how: Decoding, ends: set[int]
    ) -> list[list[Answer]]:
        """Answers to each prompt, one per seed."""

    def close(self) -> None:
        """Give back what it holds."""


class Transformers:
    """The model as it is in memory (decode.py)."""

    whole = False

    def __init__(self, model: Any, folder: Path | None, longest: int, new: int, batch: int) -> None:
        self._model = model

    def decode(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], how: Decoding, ends: set[int]
    ) -> list[list[Answer]]:
        """Answers to each prompt, one per seed."""
        return decode.decode(self._model, prompts, seeds, how, ends)

    def close(self) -> None:
        """Nothing is held."""


ENGINES: dict[str, Any] = {"transformers": Transformers, "vllm": Vllm}
