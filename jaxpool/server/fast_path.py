"""A short way to an endpoint: FastAPI's own takes half of a short text's Python.

What FastAPI does for a request with a valid JSON body is little: it finds the route, reads the body and validates it.
All else, errors above all, is still its affair.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from inspect import iscoroutinefunction
from typing import get_type_hints

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxpool.server import errors
from jaxpool.server.paths import within


class FastPath:
    """ASGI middleware: a POST with a valid JSON body goes straight to its endpoint, all else to the application.

    Args:
        app: what is behind it.
        routes: of the application. Those whose endpoint takes a request and a body, and nothing else, and makes its
            answer itself, can be reached this way.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._found: dict[str, tuple[APIRoute, type[BaseModel]]] = {}
        for route in routes:
            if isinstance(route, APIRoute) and (body := _body(route)) is not None:
                self._found.setdefault(route.path, (route, body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        found = self._found.get(within(scope)) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None or not _is_json(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        route, kind = found
        messages = [message async for message in _messages(receive)]
        try:
            body = kind.model_validate(json.loads(b"".join(message.get("body", b"") for message in messages)))
        except (ValueError, RecursionError):
            await self._app(scope, _again(messages, receive), send)
            return
        request = Request(scope, receive)
        scope["route"] = route  # as a router would; tracing reads it
        try:
            response = await route.endpoint(request, body)
        except (HTTPException, ValueError) as error:
            response = await errors.handle(request, error)
        await response(scope, receive, send)


def _body(route: APIRoute) -> type[BaseModel] | None:
    """The kind of body that a route's endpoint takes, beside a request, if that is all."""
    if not iscoroutinefunction(route.endpoint):  # FastAPI runs it in a thread
        return None
    hints = get_type_hints(route.endpoint)
    body = hints.pop("body", None)
    fits = route.methods == {"POST"} and hints == {"request": Request, "return": Response}
    return body if fits and isinstance(body, type) and issubclass(body, BaseModel) else None


def _is_json(headers: Headers) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def _messages(receive: Receive) -> AsyncIterator[Message]:
    """A request's messages, up to the last of its body."""
    more = True
    while more:
        message = await receive()
        yield message
        more = message["type"] == "http.request" and message.get("more_body", False)


def _again(messages: Iterable[Message], receive: Receive) -> Receive:
    """Messages that have been read, then those that come."""
    read = iter(messages)

    async def again() -> Message:
        return next(read, None) or await receive()

    return again
