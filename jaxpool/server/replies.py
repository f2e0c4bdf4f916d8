"""What answers have in common: ids, times, usage, and the headers that say what was cut."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from jaxpool.server.protocol import Body
from jaxpool.server.serving import Answer, Serving

# The header that says how many of a request's texts were cut.
TRUNCATED = "x-truncated-texts"


def around(kind: str, request: Request, serving: Serving, answers: Sequence[Answer], body: Body) -> dict[str, Any]:
    """The fields round the data of an answer in OpenAI's style.

    Args:
        kind: in front of the id: "embd", "pool", …
        request: that is answered.
        serving: whose name stands there.
        answers: whose tokens are counted.
        body: of the request.
    """
    return {
        "id": f"{kind}-{own_id(request, body)}",
        "object": "list",
        "created": int(time.time()),
        "model": serving.name,
        "usage": usage(answers),
    }


def own_id(request: Request, body: Body) -> str:
    """The client's own id of a request: its header's, as in vLLM before its body's; or the one made here."""
    made: str = request.state.request_id
    return made if request.headers.get("x-request-id") else body.request_id or made


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """OpenAI's usage; `truncated` counts the texts that were cut, where there are any."""
    tokens = sum(answer.tokens for answer in answers)
    counts = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    cut = sum(answer.truncated for answer in answers)
    return counts | ({"truncated": cut} if cut else {})


def headers(answers: Sequence[Answer]) -> dict[str, str]:
    """How many texts were cut, if any were."""
    cut = sum(answer.truncated for answer in answers)
    return {TRUNCATED: str(cut)} if cut else {}
