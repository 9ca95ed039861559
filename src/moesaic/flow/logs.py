"""How a process of ours logs: its own lines, and of libraries warnings only."""

import logging
from collections.abc import Iterable

NOISY = (
    "httpx",
    "urllib3",
    "datasets",
    "fsspec",
    "filelock",
    "huggingface_hub",
    "lm_eval",
    "alembic",
    "matplotlib",
)


def begin(handlers: Iterable[logging.Handler], form: str, level: int = logging.INFO) -> None:
    """Log to these handlers from now on. Args: form: of a line, as logging takes it."""
    logging.basicConfig(level=level, format=form, datefmt="%H:%M:%S", handlers=handlers, force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
