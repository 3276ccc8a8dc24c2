"""Interruption: Ctrl-C and SIGTERM become a request to stop, heeded at the next safe point."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether somebody has asked to stop.

    Attributes:
        made: Whether a signal has come.
    """

    made: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request while the block runs; a second SIGINT interrupts at once.

    Python tells signals to its main thread only; in another one nothing changes.

    Yields:
        The request. If one was made and the block ends all the same, KeyboardInterrupt is raised then.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        request.made = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.made:
        raise KeyboardInterrupt
