"""A progress bar made of plain lines: readable in a terminal, in parallel jobs, in log files and over Slurm."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

log = logging.getLogger("moesaic.progress")
T = TypeVar("T")


class Progress:
    """Logs `name [####----] 12/40 unit, details, 1:10 gone, 2:40 left`, at most every `every` seconds and at the end."""

    def __init__(self, name: str, total: int, unit: str = "", every: float = 5.0, start: int = 0):
        self.name, self.total, self.unit, self.every = name, total, unit, every
        self.done = self.first = start
        self.began = time.monotonic()
        self.last = self.began

    def update(self, n: int = 1, detail: str = "") -> None:
        """Count n more units; `detail` is shown after the count."""
        self.done += n
        now = time.monotonic()
        if now - self.last < self.every and self.done < self.total:
            return
        self.last = now
        share = self.done / self.total if self.total else 1.0
        bar = "#" * round(20 * share) + "-" * (20 - round(20 * share))
        gone = now - self.began
        made = self.done - self.first
        left = gone / made * (self.total - self.done) if made else 0.0
        tail = f", {detail}" if detail else ""
        log.info(
            "%s [%s] %d/%d %s%s, %s gone, %s left",
            self.name,
            bar,
            self.done,
            self.total,
            self.unit,
            tail,
            _clock(gone),
            _clock(left),
        )


def track(items: Iterable[T], name: str, total: int, unit: str = "") -> Iterator[T]:
    """Yield items while showing their progress."""
    progress = Progress(name, total, unit)
    for item in items:
        yield item
        progress.update()


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
