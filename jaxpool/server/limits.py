"""What a server takes on: limits on a request, and on what waits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxpool.server.errors import ApiError

# What waits to be read, together: so many bodies as large as may be, and at least what the queue could hold.
BODIES, BYTES_A_TOKEN = 8, 4


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Attributes:
        body_bytes: of a request's body; more is 413.
        texts: of a request; more is 413.
        queued_tokens: that may wait, over all requests; beyond it a request is 429. A request of more than half of that
            is large: it waits beside this queue, so that it does not shut the others out, and one at a time.
        timeout: seconds after which a request that has not begun is 504. None: never.
        batch_timeout: seconds after which a batch that the device does not give back is lost: its requests are 503, and
            the server is not healthy while it hangs. A compilation may be in it.
    """

    body_bytes: int = 32 * 2**20
    texts: int = 4096
    queued_tokens: int = 1_000_000
    timeout: float | None = 600.0
    batch_timeout: float = 600.0

    def check_texts(self, count: int) -> None:
        """Raises ApiError 413."""
        if count > self.texts:
            raise ApiError(413, f"{count} inputs in one request, at most {self.texts} are allowed", param="input")

    def check_bodies(self, unread: int, size: int) -> None:
        """Raises ApiError 429 if a body of `size` bytes is too much beside `unread` bytes that wait to be read."""
        if unread and unread + size > max(BODIES * self.body_bytes, BYTES_A_TOKEN * self.queued_tokens):
            raise ApiError(429, f"{unread} bytes of requests wait to be read", headers={"Retry-After": "1"})

    def large(self, tokens: int) -> bool:
        """Whether a request of so many tokens waits beside the queue."""
        return tokens > self.queued_tokens // 2

    def check_queue(self, queued: int, queued_large: int, tokens: int, rate: float) -> None:
        """Raises ApiError 429, with the seconds after which there is likely room.

        Args:
            queued: tokens that wait.
            queued_large: those among them that are a large request's.
            tokens: of the new request.
            rate: tokens/s of late; 0 where it is not known.
        """
        if self.large(tokens):
            over, why = queued_large, f"a request of {tokens} tokens waits until no other large one does"
        else:
            over = queued - queued_large + tokens - self.queued_tokens
            why = f"the queue is full: {queued} tokens wait, and {self.queued_tokens} may"
        if over > 0:
            wait = math.ceil(over / rate) if rate else 1
            raise ApiError(429, why, headers={"Retry-After": str(max(1, min(wait, 60)))})
