"""What every request passes first: its id, the key, the size of its body; and what is counted when it is answered."""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxpool.server import metrics
from jaxpool.server.errors import ApiError, as_api_error, error_response
from jaxpool.server.paths import within
from jaxpool.server.routes.operations import is_open

REQUEST_ID = "x-request-id"
# An id of the client's is given back only if it is of a sane length.
LONGEST_ID = 128


class Gate:
    """ASGI middleware.

    Args:
        app: what is behind it.
        keys: of which a request has to bring one, but for what `is_open`; none: no key is asked for.
        body_bytes: of a body, at most.
        paths: whose requests are counted under their own names; others are "other".
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], body_bytes: int, paths: frozenset[str]) -> None:
        self._app, self._body_bytes, self._paths = app, body_bytes, paths
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get(REQUEST_ID, "")[:LONGEST_ID] or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        start, status = time.perf_counter(), 500
        started = False

        async def tell(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            self._check_key(scope, headers)
            await self._app(scope, self._measured(headers, receive, scope["state"]), tell)
        except Exception as error:
            if started:
                raise
            await error_response(as_api_error(error))(scope, receive, tell)
        finally:
            model = scope["state"].get("model", "")
            path = within(scope)
            endpoint = path if path in self._paths else "other"
            metrics.requests.labels(model, endpoint, str(status)).inc()
            metrics.request_seconds.labels(model, endpoint).observe(time.perf_counter() - start)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not self._keys or is_open(scope) or scope["method"] == "OPTIONS":
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()
        # All are compared, so that the time says nothing.
        known = [hmac.compare_digest(given, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            raise ApiError(401, "Unauthorized", headers={"WWW-Authenticate": "Bearer"})

    def _measured(self, headers: Headers, receive: Receive, state: dict[str, Any]) -> Receive:
        """The body, as long as it is not too long. How long it is so far stands in the request's state."""
        too_long = ApiError(413, f"the body is longer than {self._body_bytes} bytes")
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > self._body_bytes:
            raise too_long
        seen = state["body_bytes"] = 0

        async def measured() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._body_bytes:
                    raise too_long
                state["body_bytes"] = seen
            return message

        return measured
