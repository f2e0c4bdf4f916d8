"""Paths that belong to several interfaces: the body's fields say whose it is.

SageMaker's `/invocations` takes every body that another endpoint takes; `/rerank` is Jina's and Cohere's, and TEI's;
`/` is any of TEI's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema
from starlette.requests import Request

from jaxpool.server.cohere_protocol import CohereBody
from jaxpool.server.context import find_model
from jaxpool.server.errors import ApiError
from jaxpool.server.protocol import (
    PAIR_FIELDS,
    Body,
    ClassifyBody,
    EmbeddingBody,
    PoolingBody,
    RerankBody,
    ScoreBody,
)
from jaxpool.server.routes import cohere, pairs, tei, texts
from jaxpool.server.tei_protocol import EmbedAllBody, EmbedBody, PredictBody, TeiRerankBody
from jaxpool.tasks import CLASSIFY, EMBED, TASKS, TOKEN_EMBED

router = APIRouter()

Endpoint = tuple[type[Body], Callable[[Request, Any], Awaitable[Response]]]
# Fields that a body has -> what answers it, by the model's task.
Shape = tuple[set[str], Mapping[str, Endpoint]]


def _always(body: type[Body], answer: Callable[[Request, Any], Awaitable[Response]]) -> Mapping[str, Endpoint]:
    return dict.fromkeys(TASKS, (body, answer))


_POOLING = _always(PoolingBody, texts.pooling)
_COHERE = _always(CohereBody, cohere.embed)
_OPENAI: Mapping[str, Endpoint] = {
    **_POOLING,
    EMBED: (EmbeddingBody, texts.embeddings),
    CLASSIFY: (ClassifyBody, texts.classify),
}
_TEI: Mapping[str, Endpoint] = {
    **_always(PredictBody, tei.predict),
    EMBED: (EmbedBody, tei.embed),
    TOKEN_EMBED: (EmbedAllBody, tei.embed_all),
}
_RERANKS: tuple[Shape, ...] = (
    ({"query", "texts"}, _always(TeiRerankBody, tei.rerank)),
    ({"query"}, _always(RerankBody, pairs.rerank)),
)
_ROOT: tuple[Shape, ...] = (_RERANKS[0], ({"inputs"}, _TEI))
# The first that fits.
_SHAPES: tuple[Shape, ...] = (
    *_RERANKS,
    *((set(pair), _always(ScoreBody, pairs.score)) for pair in PAIR_FIELDS),
    ({"texts"}, _COHERE),
    ({"images"}, _COHERE),
    ({"inputs", "input_type"}, _COHERE),
    ({"inputs"}, _TEI),
    ({"input", "task"}, _POOLING),
    ({"messages", "task"}, _POOLING),
    ({"input"}, _OPENAI),
    ({"messages"}, _OPENAI),
)


@dataclass(frozen=True)
class AnyOf:
    """Says in the OpenAPI document that an object is one of several bodies."""

    bodies: Iterable[type[Body]]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, write: GetJsonSchemaHandler) -> dict[str, Any]:
        """pydantic's hook."""
        return {"anyOf": [write(body.__pydantic_core_schema__) for body in self.bodies]}


def _any_of(shapes: Iterable[Shape]) -> AnyOf:
    return AnyOf(tuple(dict.fromkeys(body for _, endpoints in shapes for body, _ in endpoints.values())))


@router.post("/invocations")
async def invocations(request: Request, given: Annotated[dict[str, Any], _any_of(_SHAPES)]) -> Response:
    """SageMaker's: any endpoint's body."""
    return await _dispatch(request, given, _SHAPES)


@router.post("/rerank")
async def rerank(request: Request, given: Annotated[dict[str, Any], _any_of(_RERANKS)]) -> Response:
    """Jina's and Cohere's with `documents`, TEI's with `texts`."""
    return await _dispatch(request, given, (*_RERANKS, (set(), _RERANKS[-1][1])))


@router.post("/")
async def root(request: Request, given: Annotated[dict[str, Any], _any_of(_ROOT)]) -> Response:
    """TEI's, which its clients ask if they are told an address only: `/embed`, `/predict` or `/rerank`."""
    return await _dispatch(request, given, _ROOT)


async def _dispatch(request: Request, given: dict[str, Any], shapes: Iterable[Shape]) -> Response:
    named = given.get("model")
    serving = find_model(request, named if isinstance(named, str) else None)
    fields = {name for name, value in given.items() if value is not None}
    for wanted, endpoints in shapes:
        if wanted <= fields:
            body, answer = endpoints[serving.recipe.task]
            try:
                parsed = body.model_validate(given)
            except ValidationError as error:
                raise RequestValidationError(error.errors()) from None
            return await answer(request, parsed)
    raise ApiError(
        400, f"no endpoint takes a body of these fields: {sorted(given)[:10]}; among others `input` or `inputs` do"
    )
