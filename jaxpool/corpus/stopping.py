"""SIGTERM, which says that the machine is about to be taken away: what is nearly done is finished, the rest is left."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Preempted(BaseException):
    """The run ends here; what is on the disk is in order. As KeyboardInterrupt, it is not for `except Exception`."""


class Stop:
    """Listens for SIGTERM.

    Args:
        grace: seconds in which the process has to be at its end.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._deadline: float | None = None
        self._working = False

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self._deadline is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Until a shard is in work, SIGTERM raises `Preempted` wherever the main thread is."""
        if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
            yield
            return
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a shard is in work, SIGTERM is kept for `check`."""
        self._working = True
        try:
            yield
        finally:
            self._working = False

    def check(self, rows: int, rate: float) -> None:
        """Ends the run if it is to end and what is in work takes too long.

        Args:
            rows: those that are still to come in the shard.
            rate: rows a second.

        Raises:
            Preempted: SIGTERM came, and the rest would not be done in time; or it came twice.
        """
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0 or rows > rate * left:
                raise Preempted

    def _hear(self, *_: object) -> None:
        self._deadline = time.monotonic() + (0.0 if self.asked else self.grace)
        if not self._working:
            raise Preempted
