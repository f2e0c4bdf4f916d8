"""What goes wrong with a request, and how it is told: OpenAI's nested form and vLLM's flat one in the same body.

TEI's `error_type` stands beside them; its `error`, a text, would be in the way of OpenAI's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from jaxpool.log import logger

# HTTP status -> vLLM's name for the kind.
KINDS: Mapping[int, str] = {
    400: "BadRequestError",
    401: "Unauthorized",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    413: "RequestTooLargeError",
    422: "UnprocessableEntityError",
    429: "TooManyRequestsError",
    499: "ClientClosedRequest",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}

# The same for TEI; what is not here is the request's own fault.
TEI_KINDS: Mapping[int, str] = {
    401: "Unauthenticated",
    429: "Overloaded",
    500: "Backend",
    503: "Unhealthy",
    504: "Overloaded",
}


class ApiError(HTTPException):
    """An answer that is an error; FastAPI lets it through wherever it reads a request.

    Args:
        status: of HTTP.
        message: for the client; names nothing of the host.
        param: the field at fault.
        headers: of the answer.
        tei: TEI's name for the kind; None: the status's.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        tei: str | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.status, self.message, self.param = status, message, param
        self.tei = tei or TEI_KINDS.get(status, "Validation")


def error_response(error: ApiError) -> Response:
    """The answer that tells of an error. In ASCII: what it quotes of a request need not be valid Unicode."""
    told = {
        "message": error.message,
        "type": KINDS.get(error.status, "Error"),
        "param": error.param,
        "code": error.status,
    }
    headers = dict(error.headers) if error.headers else None
    body = json.dumps({"error": told, "object": "error", **told, "error_type": error.tei})
    return Response(body, error.status, headers, "application/json")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of any exception; of one that is nobody's fault but ours, nothing but that."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _of_validation(error)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case ValueError():
            return ApiError(400, str(error))
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "internal error: the server's log has more")


async def handle(request: Request, error: Exception) -> Response:
    """FastAPI's handler of all exceptions."""
    return error_response(as_api_error(error))


def _of_validation(error: RequestValidationError) -> ApiError:
    found: list[dict[str, Any]] = list(error.errors())
    where = [".".join(str(part) for part in item["loc"] if part != "body") for item in found]
    # pydantic's own words, and its name for the kind, as vLLM's clients read them. Never the input: it may be large.
    lines = [f"{place or 'body'}: {item['msg']} ({item['type']})" for place, item in zip(where, found, strict=True)]
    return ApiError(400, f"{len(found)} validation error(s): " + "; ".join(lines[:5]), param=where[0] or None)
