"""Cohere's `/v2/embed` and `/v1/embed`. Its `/v2/rerank` is in `pairs.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from starlette.requests import Request

from jaxpool.prompts import Shown
from jaxpool.server import replies, vectors
from jaxpool.server.cohere_protocol import CohereBody, check_packs, encode, prompt_name
from jaxpool.server.context import chat_of, find_model, options, pictures_of
from jaxpool.server.encoding import json_response
from jaxpool.server.protocol import TextBody
from jaxpool.server.serving import Answer, Serving

router = APIRouter()


@router.post("/v2/embed")
async def embed(request: Request, body: CohereBody) -> Response:
    """Cohere's: vectors of one or several types. `input_type` chooses the checkpoint's prompt; long texts are cut."""
    matrix, documents, answers = await _embed(request, body)
    found = {
        "embeddings": {kind: encode(matrix, kind) for kind in body.types},
        **({"texts": documents} if all(isinstance(document, str) for document in documents) else {}),
        "response_type": "embeddings_by_type",
    }
    return _response(request, body, found, _meta("2", answers, documents), answers)


@router.post("/v1/embed")
async def embed_v1(request: Request, body: CohereBody) -> Response:
    """Cohere's older clients': as `/v2/embed`, and without `embedding_types` lists of floats."""
    matrix, documents, answers = await _embed(request, body)
    by_type = {kind: encode(matrix, kind) for kind in body.types}
    found = {
        "embeddings": by_type if body.embedding_types else by_type["float"],
        "texts": [document for document in documents if isinstance(document, str)],
        "response_type": "embeddings_by_type" if body.embedding_types else "embeddings_floats",
    }
    return _response(request, body, found, _meta("1", answers, documents), answers)


def _response(
    request: Request, body: CohereBody, found: dict[str, Any], meta: dict[str, Any], answers: list[Answer]
) -> Response:
    around = {"id": f"embd-{replies.own_id(request, body)}", **found, "meta": meta}
    return json_response(around, replies.headers(answers))


async def _embed(request: Request, body: CohereBody) -> tuple[np.ndarray, list[Any], list[Answer]]:
    """The vectors [n, D] of a body's texts or pictures, these, and the answers that the vectors are of."""
    serving = find_model(request, body.model)
    vectors.check_embeds(serving)
    recipe = serving.recipe
    named = recipe.default_prompt if body.input_type is None else prompt_name(recipe, body.input_type)
    check_packs(
        min(body.output_dimension or recipe.dimensions or recipe.vector_size, recipe.embedding_size), body.types
    )
    # Where a checkpoint has an adapter for what its prompt is for, they belong together.
    adapter = named if named in recipe.adapters else None
    prompt, special = recipe.prompts[named] if named else "", True
    documents: list[Any]
    if body.texts is not None or recipe.family.tower is None:
        documents = list(body.documents)
    else:
        documents, special = await _seen(request, serving, body, prompt)
        prompt = prompt if recipe.family.tower.answers else ""
    answers = await vectors.embed(
        request,
        serving,
        body,
        documents,
        options(body, dimensions=body.output_dimension, adapter=adapter),
        prompt=prompt,
        cut=body.cut(recipe.max_length),
        special_tokens=special,
    )
    return np.stack([answer.data for answer in answers]), documents, answers


async def _seen(request: Request, serving: Serving, body: CohereBody, prompt: str) -> tuple[list[str | Shown], bool]:
    """Prompts of contents that may hold pictures, and whether the tokenizer adds its special tokens to them.

    A model that takes a text or a picture gets it as it is; others a conversation, behind the prompt as its system's
    message, as in vLLM.
    """
    contents, chat = body.contents, chat_of(request)
    serving.limits.check_texts(len(contents))
    opened = await pictures_of(request, body).opened([[content] for content in contents])
    tower = serving.recipe.family.tower
    system = [{"role": "system", "content": prompt}] if prompt and tower is not None and not tower.answers else []

    def write() -> tuple[list[str | Shown], bool]:
        bodies = [
            TextBody(
                messages=[*system, {"role": "user", "content": parts}], mm_processor_kwargs=body.mm_processor_kwargs
            )
            for (parts,) in opened
        ]
        names = [[*("input_type" for _ in system), content.name] for content in contents]
        prompts = [chat.render(serving, own, called) for own, called in zip(bodies, names, strict=True)]
        return prompts, all(chat.adds_special_tokens(serving, own) for own in bodies[:1])

    return await run_in_threadpool(write)


def _meta(version: str, answers: list[Answer], documents: list[Any]) -> dict[str, Any]:
    counted = {True: 0, False: 0}
    for answer, document in zip(answers, documents, strict=True):
        counted[isinstance(document, str)] += answer.tokens
    meta: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": {"input_tokens": counted[True], "image_tokens": counted[False]},
    }
    cut = sum(answer.truncated for answer in answers)
    return meta | ({"warnings": [f"{cut} of {len(answers)} texts were too long and have been cut"]} if cut else {})
