"""Two texts (or pictures) in, how well they go together out: `/score`, `/rerank`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from jaxpool import scoring
from jaxpool.calls import Pairs
from jaxpool.recipe import Recipe
from jaxpool.server import replies
from jaxpool.server.context import chat_of, compute, find_model, options, pictures_of
from jaxpool.server.encoding import json_response
from jaxpool.server.errors import ApiError
from jaxpool.server.pictures import Content
from jaxpool.server.protocol import RerankBody, ScoreBody, ScoringBody
from jaxpool.server.serving import Answer, Serving

router = APIRouter()
# Cohere's paths -> the version of its interface.
_COHERES = {"/v1/rerank": "1", "/v2/rerank": "2"}


@router.post("/score")
@router.post("/v1/score")
async def score(request: Request, body: ScoreBody) -> Response:
    """vLLM's: 1 with 1, 1 with N, or N with N."""
    serving = find_model(request, body.model)
    check_scores(serving, "Score API")
    sides = {name: side if isinstance(side, list) else [side] for name, side in body.sides.items()}
    serving.limits.check_texts(max(map(len, sides.values())))
    named = {f"{name}[{i}]": item for name, side in sides.items() for i, item in enumerate(side)}
    opened = zip(named, await open_sides(request, serving, body, named), strict=True)
    wishes = body.mm_processor_kwargs or {}
    parsed = iter([scoring.parse_side(item, name, serving.recipe, wishes) for name, item in opened])
    pairs = serving.calls.pairs(*([next(parsed) for _ in side] for side in sides.values()))
    scores, answers = await score_pairs(request, serving, body, pairs, body.truncate_prompt_tokens)
    data = [{"index": i, "object": "score", "score": float(value)} for i, value in enumerate(scores)]
    around = replies.around("score", request, serving, answers, body)
    return json_response({**around, "data": data}, replies.headers(answers))


@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(request: Request, body: RerankBody) -> Response:
    """Jina's and Cohere's: documents by how well they answer the query. Longer texts are cut.

    `invocations.py` mounts it at `/rerank` too, beside TEI's.
    """
    serving = find_model(request, body.model)
    check_scores(serving, "Rerank (Score) API")
    if (body.top_n or 0) < 0:
        raise ApiError(400, f"top_n is {body.top_n}, expected 0 for all, or a number of documents", param="top_n")
    serving.limits.check_texts(len(body.documents))
    named = {"query": body.query} | {f"documents[{i}]": document for i, document in enumerate(body.documents)}
    opened = await open_sides(request, serving, body, named)
    wishes = body.mm_processor_kwargs or {}
    query, *sides = [side_of(item, name, serving.recipe, wishes) for name, item in zip(named, opened, strict=True)]
    pairs = serving.calls.pairs(query, sides)
    truncate = -1 if body.truncate_prompt_tokens is None else body.truncate_prompt_tokens
    scores, answers = await score_pairs(request, serving, body, pairs, truncate)
    ranked = scoring.rank(scores.tolist(), sides, body.top_n or None, return_documents=False)
    results: list[dict[str, Any]] = [{"index": r.index, "relevance_score": r.score} for r in ranked]
    if body.return_documents:
        for result in results:
            side = sides[result["index"]]
            given = body.documents[result["index"]]
            result["document"] = {"text": side} if isinstance(side, str) else {"multi_modal": given["content"]}
    around = replies.around("rerank", request, serving, answers, body)
    meta = _meta(request, answers, len(sides))
    return json_response({**around, "results": results, **meta}, replies.headers(answers))


def _meta(request: Request, answers: list[Answer], documents: int) -> dict[str, Any]:
    """Cohere's, on its paths: a search unit is a query with up to 100 documents."""
    version = _COHERES.get(request.scope["route"].path)
    units = {"search_units": -(-documents // 100), "input_tokens": sum(answer.tokens for answer in answers)}
    return {"meta": {"api_version": {"version": version}, "billed_units": units}} if version else {}


def check_scores(serving: Serving, api: str) -> None:
    """Raises ApiError unless the model scores pairs."""
    try:
        if serving.recipe.embeds:
            serving.calls.check_one_vector("score")
        else:
            serving.calls.check_one_score()
    except ValueError as error:
        raise ApiError(400, f"The model does not support {api}: {error}") from None


async def score_pairs(
    request: Request, serving: Serving, body: ScoringBody, pairs: Pairs, truncate: int | None
) -> tuple[np.ndarray, list[Answer]]:
    """Scores [n], and the answers that they are of."""

    template = chat_of(request).of_pairs(serving)

    def make() -> Any:
        limits = (body.max_tokens_per_query, body.max_tokens_per_doc)
        first, second = (_cut(side, limit, serving) for side, limit in zip(pairs, limits, strict=True))
        return serving.calls.score(
            (first, second),
            options(body),
            truncate=truncate,
            tokenization=body.tokenization,
            chat_template=template,
            instruction=body.instruction,
        )

    answers = await compute(request, serving, body, make, inputs=len(pairs[0]))
    rows = np.stack([answer.data for answer in answers])
    if not serving.recipe.embeds:
        return rows[:, 0], answers
    return scoring.cosine(rows[: len(pairs[0])], rows[len(pairs[0]) :]), answers


def _cut(side: list[scoring.Side], limit: int, serving: Serving) -> list[scoring.Side]:
    """One side's texts, each at most `limit` tokens long; 0: as they are. Of a query that meets many documents once."""
    if not limit:
        return side
    cut = cache(lambda text: serving.llm.engine.tokenizer.cut_text(text, limit))
    return [cut(item) if isinstance(item, str) else item for item in side]


async def open_sides(request: Request, serving: Serving, body: ScoringBody, named: Mapping[str, Any]) -> list[Any]:
    """Sides of pairs by their names in the body -> the same, with their pictures opened, if the model compares any.

    Raises:
        ValueError, ApiError: as `Pictures.opened`.
    """
    items = list(named.values())
    if not scoring.compares_pictures(serving.recipe):
        return items
    contents = {
        i: [Content(item["content"], f"{name}.content")]
        for i, (name, item) in enumerate(named.items())
        if isinstance(item, Mapping) and "content" in item
    }
    opened = await pictures_of(request, body).opened(list(contents.values()))
    for i, (parts,) in zip(contents, opened, strict=True):
        items[i] = {**items[i], "content": parts}
    return items


def side_of(given: str | Mapping[str, Any], name: str, recipe: Recipe, options: Mapping[str, Any]) -> scoring.Side:
    """A document: a text, or {"text": …}, or {"content": [part, …]}."""
    if isinstance(given, str):
        return given
    if isinstance(given.get("text"), str):
        return given["text"]
    return scoring.parse_side(given, name, recipe, options)
