"""Signals that ask a run to stop."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts() -> Generator[threading.Event, None, None]:
    """An event that SIGINT and SIGTERM set, so that the step is completed and saved before the run stops.

    Only the first signal is caught, so that a second one can stop a run that hangs.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def first_signal(signum: int, _: FrameType | None) -> None:
        event.set()
        signal.signal(signum, previous[signal.Signals(signum)])

    for signum in previous:
        signal.signal(signum, first_signal)
    try:
        yield event
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
