"""Threads that read requests: templates, tokenising. Short bodies do not wait behind long ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jaxpool.server.limits import Limits

T = TypeVar("T")

# Bytes of a body from which it is a long one: some 10 ms of tokenising. The threads of each lane.
LONG = 2**16
THREADS = {"short": 2, "long": 1}


class Readers:
    """Two lanes of threads. To be used from one event loop.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lanes = {
            lane: ThreadPoolExecutor(threads, thread_name_prefix=f"jaxpool-server-read-{lane}")
            for lane, threads in THREADS.items()
        }
        self._unread = 0

    async def read(self, work: Callable[[], T], size: int) -> T:
        """What `work` returns, from a thread of the lane for bodies of `size` bytes.

        Raises:
            ApiError: 429 too much waits to be read.
        """
        self._limits.check_bodies(self._unread, size)
        self._unread += size
        try:
            return await self.read_on(work, size)
        finally:
            self._unread -= size

    async def read_on(self, work: Callable[[], T], size: int) -> T:
        """As `read`, for a request that has been let in before."""
        lane = self._lanes["long" if size >= LONG else "short"]
        return await asyncio.get_running_loop().run_in_executor(lane, work)

    def close(self) -> None:
        """Ends the threads; what waits is cancelled."""
        for lane in self._lanes.values():
            lane.shutdown(wait=False, cancel_futures=True)
