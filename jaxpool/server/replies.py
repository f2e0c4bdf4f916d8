"""What answers have in common: ids, times, usage, and the headers that say what was cut."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from jaxpool.server.serving import Answer, Serving

# The header that says how many of a request's texts were cut.
TRUNCATED = "x-truncated-texts"


def around(kind: str, serving: Serving, answers: Sequence[Answer], request_id: str | None = None) -> dict[str, Any]:
    """The fields round the data of an answer in OpenAI's style.

    Args:
        kind: in front of the id: "embd", "pool", …
        serving: whose name stands there.
        answers: whose tokens are counted.
        request_id: the client's own.
    """
    return {
        "id": f"{kind}-{request_id or uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": serving.name,
        "usage": usage(answers),
    }


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
