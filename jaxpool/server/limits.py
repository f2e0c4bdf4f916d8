"""What a server takes on: limits on a request, and on what waits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxpool.server.errors import ApiError


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Attributes:
        body_bytes: of a request's body; more is 413.
        texts: of a request; more is 413.
        queued_tokens: that may wait, over all requests; beyond it a request is 429, unless nothing waits.
        timeout: seconds after which a request that has not begun is 504. None: never.
    """

    body_bytes: int = 32 * 2**20
    texts: int = 4096
    queued_tokens: int = 1_000_000
    timeout: float | None = 600.0

    def check_texts(self, count: int) -> None:
        """Raises ApiError 413."""
        if count > self.texts:
            raise ApiError(413, f"{count} inputs in one request, at most {self.texts} are allowed", param="input")

    def check_queue(self, queued: int, tokens: int, rate: float) -> None:
        """Raises ApiError 429, with the seconds after which there is likely room.

        Args:
            queued: tokens that wait.
            tokens: of the new request.
            rate: tokens/s of late; 0 where it is not known.
        """
        if queued and queued + tokens > self.queued_tokens:
            wait = math.ceil((queued + tokens - self.queued_tokens) / rate) if rate else 1
            raise ApiError(
                429,
                f"the queue is full: {queued} tokens wait, and {self.queued_tokens} may",
                headers={"Retry-After": str(max(1, min(wait, 60)))},
            )
