"""Texts behind one of the checkpoint's prompts, as vectors: what Cohere's and TEI's endpoints share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from jaxpool.calls import Call
from jaxpool.pooling_params import PoolingParams
from jaxpool.server.context import compute
from jaxpool.server.errors import ApiError
from jaxpool.server.protocol import Body
from jaxpool.server.serving import Answer, Serving
from jaxpool.tasks import EMBED, PER_TOKEN, TOKEN_EMBED


@dataclass(frozen=True)
class Cut:
    """What becomes of long texts.

    Attributes:
        cut: whether they are cut, or refused.
        side: "left" or "right", where; None: as the checkpoint says.
        limit: most tokens; None: the model's.
    """

    cut: bool
    side: str | None = None
    limit: int | None = None

    @property
    def truncate(self) -> int | None:
        """vLLM's `truncate_prompt_tokens`."""
        return self.limit if self.limit is not None else -1 if self.cut else None

    @property
    def tokenization(self) -> dict[str, Any]:
        """vLLM's `tokenization_kwargs`."""
        return {} if self.side is None else {"truncation_side": self.side}


def check_embeds(serving: Serving, task: str = EMBED) -> None:
    """Raises ApiError unless the model answers `task`: with one vector a text, or one a token."""
    per_token = serving.recipe.task in PER_TOKEN
    able = TOKEN_EMBED in serving.recipe.tasks if task == TOKEN_EMBED else serving.recipe.embeds and not per_token
    if not able:
        raise ApiError(400, "The model does not support Embeddings API")


async def embed(
    request: Request,
    serving: Serving,
    body: Body,
    texts: str | Sequence[Any],
    params: PoolingParams,
    *,
    prompt: str,
    cut: Cut,
    task: str = EMBED,
    special_tokens: bool = True,
) -> list[Answer]:
    """The vectors of texts (or token ids, or prompts with pictures), in order.

    Args:
        request, serving, body: as `compute` takes them.
        texts: as `LLM.encode` takes them.
        params: what is asked of the pooler.
        prompt: to put in front of each text.
        cut: what becomes of long ones.
        task: "embed", or "token_embed" for every token's.
        special_tokens: whether the tokenizer adds its own.

    Raises:
        ApiError: as `compute`.
        ValueError: as `Calls.encode`, and texts that are too long where none is to be cut.
    """

    def make() -> Call:
        tokenization = cut.tokenization | ({} if special_tokens else {"add_special_tokens": False})
        call = serving.calls.encode(texts, params, pooling_task=task, truncate=cut.truncate, tokenization=tokenization)
        return call._replace(reading=replace(call.reading, prompt=prompt, cut=cut.cut))

    return await compute(request, serving, body, make)
