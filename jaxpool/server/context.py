"""What an endpoint needs of its request: the model, the time it has, whether the client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial, wraps
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from jaxpool.calls import Call
from jaxpool.pooling_params import PoolingParams
from jaxpool.server import metrics
from jaxpool.server.chat import Chat
from jaxpool.server.errors import ApiError
from jaxpool.server.paths import within
from jaxpool.server.pictures import Content, Pictures
from jaxpool.server.protocol import Body, TextBody
from jaxpool.server.registry import Models
from jaxpool.server.serving import Answer, Serving, Wait


class Naming(Protocol):
    """A body that may name a model."""

    model: str | None


B = TypeVar("B", bound=Naming)

# A client's own bound on how long its request may wait, in seconds.
TIMEOUT_HEADER = "x-request-timeout"
# Of a body, what becomes `PoolingParams`.
_OPTIONS = ("dimensions", "normalize", "softmax", "activation", "use_activation")


def find_model(request: Request, name: str | None) -> Serving:
    """The model that a request names. Raises ApiError 404."""
    models: Models = request.app.state.models
    serving = models.find(name)
    request.state.model = serving.name
    return serving


def options(body: Body, **more: Any) -> PoolingParams:
    """What a body asks of the pooler."""
    said = {name: getattr(body, name, None) for name in _OPTIONS} | more
    return PoolingParams(**{name: value for name, value in said.items() if value is not None})


async def open_messages(request: Request, serving: Serving, body: TextBody) -> TextBody:
    """The body, with the pictures of its messages opened, if the model sees. Errors as `Pictures.opened`."""
    serving.limits.check_texts(len(body.conversations))
    if body.messages is None or serving.recipe.family.tower is None:
        return body
    contents = [
        [Content(message.get("content"), name) for message, name in zip(messages, names, strict=True)]
        for messages, names in zip(body.conversations, _names(body), strict=True)
    ]
    opened = await pictures_of(request, body).opened(contents)
    seen = [
        [{**message, "content": content} for message, content in zip(messages, own, strict=True)]
        for messages, own in zip(body.conversations, opened, strict=True)
    ]
    return body.model_copy(update={"messages": seen if body.several else seen[0]})


def _names(body: TextBody) -> list[list[str]]:
    """How errors call the content of each message of each conversation."""
    numbers = [f"[{number}]" if body.several else "" for number in range(len(body.conversations))]
    return [
        [f"messages{number}[{i}].content" for i in range(len(messages))]
        for number, messages in zip(numbers, body.conversations, strict=True)
    ]


def pictures_of(request: Request, body: Body) -> Pictures:
    """What opens pictures for a body, whose own wishes are checked. Raises ValueError."""
    pictures: Pictures = request.app.state.pictures
    pictures.allowed.check_options(body.mm_processor_kwargs or {})
    return pictures


def prompts(request: Request, serving: Serving, body: TextBody) -> Any:
    """The body's input, or the prompts that a chat template makes of its conversations. Raises ValueError."""
    if body.messages is None:
        return body.input
    render = chat_of(request).render
    if not body.several:
        return render(serving, body)
    each = zip(body.conversations, _names(body), strict=True)
    return [render(serving, body.model_copy(update={"messages": messages}), names) for messages, names in each]


def tokenization(request: Request, serving: Serving, body: TextBody) -> dict[str, Any]:
    """vLLM's `tokenization_kwargs`."""
    special = chat_of(request).adds_special_tokens(serving, body)
    return body.model_copy(update={"add_special_tokens": special}).tokenization


def chat_of(request: Request) -> Chat:
    """How this server reads conversations."""
    chat: Chat = request.app.state.chat
    return chat


async def compute(
    request: Request, serving: Serving, body: Body, make: Callable[[], Call], inputs: int | None = None
) -> list[Answer]:
    """Makes a call and waits for its answers, as long as the client does.

    Args:
        inputs: as `Serving.answer`.

    Raises:
        ApiError: as `Serving.answer`.
        ValueError: as `make`.
    """
    async with _waiting(request, serving, body.priority) as wait:
        answers = await serving.answer(make, wait, inputs=inputs, size=_body_bytes(request))
    endpoint = within(request.scope)
    tokens = request.state.tokens = sum(answer.tokens for answer in answers)
    metrics.request_tokens.labels(serving.name, endpoint).observe(tokens)
    metrics.truncated.labels(serving.name).inc(sum(answer.truncated for answer in answers))
    return answers


def _body_bytes(request: Request) -> int:
    """Bytes of a request's body, as the gate has counted them."""
    return int(getattr(request.state, "body_bytes", 0))


def in_reader(endpoint: Callable[[Request, B], Response]) -> Callable[[Request, B], Awaitable[Response]]:
    """An endpoint that takes its time and no device, run by the threads that read the model's requests."""

    @wraps(endpoint)
    async def read(request: Request, body: B) -> Response:
        serving = find_model(request, body.model)
        async with _waiting(request, serving) as wait:
            return await serving.read(partial(endpoint, request, body), wait, _body_bytes(request))

    return read


@asynccontextmanager
async def _waiting(request: Request, serving: Serving, priority: int = 0) -> AsyncIterator[Wait]:
    """How a request waits, as long as its client does. Raises ApiError 400."""
    timeout = _timeout(request, serving)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        yield Wait(timeout, priority, gone)
    finally:
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone


def _timeout(request: Request, serving: Serving) -> float | None:
    own, asked = serving.limits.timeout, request.headers.get(TIMEOUT_HEADER)
    if asked is None:
        return own
    try:
        seconds = float(asked)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ApiError(400, f"{TIMEOUT_HEADER} is {asked!r}, expected seconds", param=TIMEOUT_HEADER)
    return seconds if own is None else min(seconds, own)


async def _disconnected(request: Request) -> None:
    # The body has been read, so this is what comes next.
    while (await request.receive())["type"] != "http.disconnect":
        pass
