"""How TEI answers: the statuses of its refusals, and headers that say what was computed and how long it took.

Its headers x-tokenization-time, x-queue-time and x-inference-time are left out: one batch here may hold parts of many
requests, so that a request has no such times of its own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

from fastapi.responses import Response
from starlette.requests import Request

from jaxpool.server.context import find_model
from jaxpool.server.errors import ApiError
from jaxpool.server.tei_protocol import TeiBody

B = TypeVar("B", bound=TeiBody)
Endpoint = Callable[[Request, B], Awaitable[Response]]


def as_tei(endpoint: Endpoint[B]) -> Endpoint[B]:
    """The same endpoint, as TEI's clients know it.

    A request that is understood and not taken (too many texts, one that is too long, a prompt that there is not) is
    422, without texts 400; elsewhere they are 413 and 400.
    """

    @wraps(endpoint)
    async def told(request: Request, body: B) -> Response:
        start = time.perf_counter()
        if body.read == []:
            raise ApiError(400, "At least one text must be given: the list cannot be empty", tei="Empty")
        try:
            response = await endpoint(request, body)
        except ApiError as error:
            if error.status != 413:
                raise
            raise ApiError(422, error.message, param=error.param) from None
        except ValueError as error:
            raise ApiError(422, str(error)) from None
        milliseconds = round(1000 * (time.perf_counter() - start))
        response.headers.update(_computed(request, body, milliseconds))
        return response

    return told


def _computed(request: Request, body: TeiBody, milliseconds: int) -> dict[str, str]:
    """TEI's headers; its compute time is the total one too."""
    device = find_model(request, body.model).llm.engine.meshes[0].devices.flat[0]
    said: dict[str, Any] = {
        "x-compute-type": device.platform,
        "x-compute-time": milliseconds,
        "x-total-time": milliseconds,
        "x-compute-tokens": request.state.tokens,
    }
    if body.read is not None:
        said["x-compute-characters"] = sum(map(len, body.read))
    return {name: str(value) for name, value in said.items()}
