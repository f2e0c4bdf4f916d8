"""Outcomes from other threads for event loops' futures: any number of them with one wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

Letter = tuple[asyncio.Future[Any], Any]


class Mailbox:
    """Holds outcomes until they are delivered. Safe to use from several threads.

    Waking a loop lets go of Python's lock, which a busy loop then keeps for milliseconds: waking it for each answer of
    a batch would hold up the thread that has to run the next one.
    """

    def __init__(self) -> None:
        self._letters: deque[Letter] = deque()

    def put(self, future: asyncio.Future[Any], outcome: Any) -> None:
        """Keeps an outcome, or an exception, for a future."""
        self._letters.append((future, outcome))

    def deliver(self) -> None:
        """Has their loops settle all futures that there are outcomes for."""
        found: dict[asyncio.AbstractEventLoop, list[Letter]] = {}
        with suppress(IndexError):  # when it is empty
            while True:
                letter = self._letters.popleft()
                found.setdefault(letter[0].get_loop(), []).append(letter)
        for loop, letters in found.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_settle_all, letters)


def settle(future: asyncio.Future[Any], outcome: Any) -> None:
    """A future's result or exception, unless it has one; in its loop's thread."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _settle_all(letters: list[Letter]) -> None:
    for future, outcome in letters:
        settle(future, outcome)
