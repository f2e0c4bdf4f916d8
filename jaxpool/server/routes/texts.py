"""A text (or a picture) in, a vector or classes out: `/v1/embeddings`, `/pooling`, `/classify`."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from jaxpool.server import replies
from jaxpool.server.context import compute, find_model, open_messages, options, prompts, tokenization
from jaxpool.server.encoding import bytes_response, json_of_items, json_response, written
from jaxpool.server.errors import ApiError
from jaxpool.server.protocol import ClassifyBody, EmbeddingBody, PoolingBody, TextBody, VectorBody
from jaxpool.server.serving import Answer, Serving
from jaxpool.server.vectors import check_embeds
from jaxpool.tasks import CLASSIFY, EMBED

router = APIRouter()


@router.post("/v1/embeddings")
@router.post("/embeddings", include_in_schema=False)
async def embeddings(request: Request, body: EmbeddingBody) -> Response:
    """OpenAI's."""
    serving = find_model(request, body.model)
    check_embeds(serving)
    answers = await _encode(request, serving, body, EMBED)
    return await _vectors(request, serving, body, answers, "embd", "embedding")


@router.post("/pooling")
async def pooling(request: Request, body: PoolingBody) -> Response:
    """vLLM's: what the model's pooler extracts, of any of its tasks."""
    serving = find_model(request, body.model)
    answers = await _encode(request, serving, body, body.task)
    return await _vectors(request, serving, body, answers, "pool", "pooling")


@router.post("/classify")
async def classify(request: Request, body: ClassifyBody) -> Response:
    """vLLM's: the classes' probabilities."""
    serving = find_model(request, body.model)
    if CLASSIFY not in serving.recipe.tasks:
        raise ApiError(400, "The model does not support Classification API")
    answers = [] if body.input == [] else await _encode(request, serving, body, CLASSIFY)
    labels = serving.recipe.hf.get("id2label") or {}
    data = []
    for i, answer in enumerate(answers):
        best = int(answer.data.argmax())
        label = labels.get(str(best))
        data.append({"index": i, "label": label, "probs": answer.data, "num_classes": len(answer.data)})
    around = replies.around("classify", request, serving, answers, body)
    return json_response({**around, "data": data}, replies.headers(answers))


async def _encode(request: Request, serving: Serving, body: TextBody, task: str | None) -> list[Answer]:
    body = await open_messages(request, serving, body)

    def make() -> Any:
        return serving.calls.encode(
            prompts(request, serving, body),
            options(body),
            pooling_task=task,
            truncate=body.truncate_prompt_tokens,
            tokenization=tokenization(request, serving, body),
        )

    return await compute(request, serving, body, make)


async def _vectors(
    request: Request, serving: Serving, body: VectorBody, answers: list[Answer], kind: str, what: str
) -> Response:
    around = replies.around(kind, request, serving, answers, body)
    headers = replies.headers(answers)
    if body.encoding_format.startswith("bytes"):
        return bytes_response([answer.data for answer in answers], body, around, headers)
    field = "data" if what == "pooling" else what
    write = partial(written, body=body)
    data = [{"index": i, "object": what, field: write(answer.data)} for i, answer in enumerate(answers)]
    return await json_of_items(around, "data", data, sum(answer.data.size for answer in answers), headers)
