"""Cohere's `/v2/embed`. Its `/v2/rerank` is in `pairs.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from jaxpool.server import replies, vectors
from jaxpool.server.cohere_protocol import CohereBody, check_packs, encode, prompt_name
from jaxpool.server.context import find_model, options
from jaxpool.server.encoding import json_response
from jaxpool.server.serving import Answer

router = APIRouter()


@router.post("/v2/embed")
async def embed(request: Request, body: CohereBody) -> Response:
    """Cohere's: vectors of one or several types. `input_type` chooses the checkpoint's prompt; long texts are cut."""
    serving = find_model(request, body.model)
    vectors.check_embeds(serving)
    recipe = serving.recipe
    named = recipe.default_prompt if body.input_type is None else prompt_name(recipe, body.input_type)
    check_packs(
        min(body.output_dimension or recipe.dimensions or recipe.vector_size, recipe.embedding_size), body.types
    )
    # Where a checkpoint has an adapter for what its prompt is for, they belong together.
    adapter = named if named in recipe.adapters else None
    answers = await vectors.embed(
        request,
        serving,
        body,
        body.documents,
        options(body, dimensions=body.output_dimension, adapter=adapter),
        prompt=recipe.prompts[named] if named else "",
        cut=body.cut(recipe.max_length),
    )
    matrix = np.stack([answer.data for answer in answers])
    found = {
        "id": replies.around("embd", serving, answers, body.request_id)["id"],
        "embeddings": {kind: encode(matrix, kind) for kind in body.types},
        "texts": body.documents,
        "meta": _meta(answers),
        "response_type": "embeddings_by_type",
    }
    return json_response(found, replies.headers(answers))


def _meta(answers: list[Answer]) -> dict[str, Any]:
    tokens = sum(answer.tokens for answer in answers)
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens, "image_tokens": 0}}
    cut = sum(answer.truncated for answer in answers)
    return meta | ({"warnings": [f"{cut} of {len(answers)} texts were too long and have been cut"]} if cut else {})
