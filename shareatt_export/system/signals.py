"""Delay signals while an interruption would do harm.

Python raises KeyboardInterrupt between any two instructions, also inside its own locks. A lock that is never released
blocks the program for ever, and nobody repeats a removal that was interrupted.
"""

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self


class HeldSignals:
    """Delay SIGINT and SIGTERM until the end of the block if they have handlers in Python.

    `received` lists the numbers of the signals that arrived meanwhile, in order.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._handlers: dict[int, Callable[[int, Any], Any]] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, lambda number, frame: self.received.append(number))
        return self

    def __exit__(self, *_: object) -> None:
        """Call the handler of the first signal; its exception replaces one that the block raised."""
        with ExitStack() as stack:
            for number, handler in self._handlers.items():
                stack.callback(signal.signal, number, handler)
        for number in self.received[:1]:
            self._handlers[number](number, None)
