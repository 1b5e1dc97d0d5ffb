"""Signals that wait for a moment at which they do no harm.

Python raises KeyboardInterrupt between any two instructions, those of its own locks included: one that stays taken
stops a program for ever, and a removal that stops half way is not done again.
"""

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self


class HeldSignals:
    """SIGINT and SIGTERM wait for the end of the block, if they have handlers in Python; `came` are those that wait."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self._handlers: dict[int, Callable[[int, Any], Any]] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, lambda number, frame: self.came.append(number))
        return self

    def __exit__(self, *_: object) -> None:
        """Raises what the first of them raises, in the place of what the block did."""
        with ExitStack() as stack:
            for number, handler in self._handlers.items():
                stack.callback(signal.signal, number, handler)
        for number in self.came[:1]:
            self._handlers[number](number, None)
