"""Asked to stop: a flag that SIGTERM, SIGUSR2 or the first Ctrl-C sets, and that the training loop polls each step.

The handlers only set the flag, whatever comes and however often: Slurm signals every process of a step, and the
launcher forwards too, so one request may arrive three times. A second Ctrl-C ends the process at once.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

_stop = threading.Event()
_previous: dict[int, Any] = {}


def install() -> None:
    """Catch the signals; calling it again changes nothing. Main thread only."""
    for number in SIGNALS:
        if number not in _previous:
            _previous[number] = signal.signal(number, _handle)


def restore() -> None:
    """Give the signals back to whoever had them before `install`."""
    for number, handler in _previous.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    _previous.clear()


@contextlib.contextmanager
def caught() -> Iterator[bool]:
    """Catch the signals within, and give them back: what comes after does not ask, and there a signal ends the process as it ends any.

    Yields whether they were free before; else whoever caught them keeps them.
    """
    free = not _previous
    install()
    try:
        yield free
    finally:
        if free:
            restore()


def stop_requested() -> bool:
    """True once the process was asked to stop."""
    return _stop.is_set()


def request_stop() -> None:
    """Ask this process to stop, as a signal would."""
    _stop.set()


def clear() -> None:
    """Forget an earlier request; for a process that runs several steps, one after the other."""
    _stop.clear()


def _handle(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and _stop.is_set():
        raise KeyboardInterrupt
    _stop.set()
