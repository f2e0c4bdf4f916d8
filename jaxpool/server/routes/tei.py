"""text-embeddings-inference's (TEI's) endpoints: `/embed`, `/embed_all`, `/predict`, `/similarity`, `/rerank`, `/info`.

Long texts are cut unless `truncate` is false, as TEI does today; the header `x-truncated-texts` says how many were.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from jaxpool import scoring
from jaxpool.calls import Call
from jaxpool.pooling_params import PoolingParams
from jaxpool.prompts import parse_text
from jaxpool.reading import make_reading
from jaxpool.recipe import Recipe
from jaxpool.server import replies, vectors
from jaxpool.server.context import chat_of, compute, find_model, in_reader, options
from jaxpool.server.encoding import json_response
from jaxpool.server.errors import ApiError
from jaxpool.server.protocol import ScoringBody
from jaxpool.server.readers import THREADS
from jaxpool.server.routes.pairs import check_scores, score_pairs
from jaxpool.server.serving import Serving
from jaxpool.server.tei_protocol import (
    DecodeBody,
    EmbedAllBody,
    EmbedBody,
    PredictBody,
    SimilarityBody,
    SimilarityParameters,
    TeiRerankBody,
)
from jaxpool.server.tei_replies import as_tei
from jaxpool.tasks import CLASSIFY, TOKEN_EMBED

router = APIRouter()


@router.post("/embed")
@as_tei
async def embed(request: Request, body: EmbedBody) -> Response:
    """TEI's: a vector a text, of length 1 unless `normalize` is false."""
    serving = find_model(request, body.model)
    vectors.check_embeds(serving)
    prompt = serving.calls.prompt(body.prompt_name, None)
    answers = await vectors.embed(request, serving, body, body.inputs, options(body), prompt=prompt, cut=body.cut)
    return json_response([np.ascontiguousarray(answer.data) for answer in answers], replies.headers(answers))


@router.post("/embed_all")
@as_tei
async def embed_all(request: Request, body: EmbedAllBody) -> Response:
    """TEI's: a vector a token, not normalised."""
    serving = find_model(request, body.model)
    vectors.check_embeds(serving, TOKEN_EMBED)
    answers = await vectors.embed(
        request,
        serving,
        body,
        body.inputs,
        PoolingParams(normalize=False),
        prompt=serving.calls.prompt(body.prompt_name, None),
        cut=body.cut,
        task=TOKEN_EMBED,
    )
    return json_response([np.ascontiguousarray(answer.data) for answer in answers], replies.headers(answers))


@router.post("/embed_sparse")
async def embed_sparse(request: Request, body: EmbedAllBody) -> Response:
    """TEI's; refused, since no family here answers with sparse vectors."""
    find_model(request, body.model)
    raise ApiError(400, "The model does not support Sparse Embeddings API: its vectors are dense")


@router.post("/predict")
@as_tei
async def predict(request: Request, body: PredictBody) -> Response:
    """TEI's: the classes of texts or pairs, the likeliest first; of several inputs a list each."""
    serving = find_model(request, body.model)
    recipe, cut = serving.recipe, body.cut
    if CLASSIFY not in recipe.tasks:
        raise ApiError(400, "The model does not support Classification API")
    tokenizer = serving.llm.engine.tokenizer

    template = chat_of(request).of_pairs(serving)

    def make() -> Call:
        write = scoring.PairWriter(recipe, tokenizer.special_tokens, template)
        params = PoolingParams(use_activation=False if body.raw_scores else None)
        (own,) = serving.calls.options(params, 1, CLASSIFY)
        sequences = [[parse_text(text, f"inputs[{i}]") for text in given] for i, given in enumerate(body.sequences)]
        requests = [(write(*given) if len(given) == 2 else given[0], own) for given in sequences]
        return Call(CLASSIFY, requests, make_reading(recipe, tokenizer, "", cut.truncate, cut.tokenization))

    answers = await compute(request, serving, body, make)
    found = [_predictions(recipe, answer.data) for answer in answers]
    return json_response(found if body.is_batch else found[0], replies.headers(answers))


@router.post("/similarity")
@as_tei
async def similarity(request: Request, body: SimilarityBody) -> Response:
    """TEI's: the cosine of one text with each of the others."""
    serving = find_model(request, body.model)
    vectors.check_embeds(serving)
    how, given = body.parameters or SimilarityParameters(), body.inputs
    prompt = serving.calls.prompt(how.prompt_name, None)
    texts = [given.source_sentence, *given.sentences]
    answers = await vectors.embed(request, serving, body, texts, PoolingParams(), prompt=prompt, cut=how.cut)
    source, *others = (answer.data for answer in answers)
    return json_response(scoring.cosine(source[None], np.stack(others)), replies.headers(answers))


@as_tei
async def rerank(request: Request, body: TeiRerankBody) -> Response:
    """TEI's: texts by how well they answer the query. `invocations.py` mounts it beside Jina's.

    Scores are the sigmoid of what the model says, whatever activation its checkpoint names; `raw_scores` leaves it
    out. Of a model that embeds they are cosines in both cases.
    """
    serving = find_model(request, body.model)
    check_scores(serving, "Rerank (Score) API")
    embeds, cut = serving.recipe.embeds, body.cut
    pairs = serving.calls.pairs(body.query, body.texts)
    how = ScoringBody.model_validate(
        {"priority": body.priority, "truncation_side": cut.side, "use_activation": None if embeds else False}
    )
    scores, answers = await score_pairs(request, serving, how, pairs, cut.truncate)
    if not (body.raw_scores or embeds):
        scores = _sigmoid(scores)
    ranked = scoring.rank(scores.tolist(), body.texts, None, return_documents=False)
    text = (lambda i: {"text": body.texts[i]}) if body.return_text else lambda _: {}
    return json_response(
        [{"index": place.index, "score": place.score, **text(place.index)} for place in ranked],
        replies.headers(answers),
    )


@router.get("/info")
async def info(request: Request, model: str | None = None) -> dict[str, Any]:
    """TEI's: what is served, and its limits; of several models the first, or `?model=`."""
    serving = find_model(request, model)
    limits, engine = serving.limits, serving.llm.engine
    return {
        "model_id": serving.name,
        "model_sha": None,
        "model_dtype": str(serving.llm.dtype),
        "model_type": _model_type(serving),
        "max_concurrent_requests": limits.queued_tokens,  # a request has at least one token
        "max_input_length": serving.recipe.max_length,
        "max_batch_tokens": max(shape.area for shape in engine.ladder.shapes),
        "max_batch_requests": None,
        "max_client_batch_size": limits.texts,
        "auto_truncate": True,
        "tokenization_workers": sum(THREADS.values()),
        "version": version("jaxpool"),
        "sha": None,
        "docker_label": None,
    }


@router.post("/decode")
@in_reader
def decode(request: Request, body: DecodeBody) -> Response:
    """TEI's: the texts of token ids."""
    serving = find_model(request, body.model)
    tokenizer = serving.llm.engine.tokenizer
    batch: list[Any] = body.ids if body.ids and isinstance(body.ids[0], list) else [body.ids]
    if len(batch) > serving.limits.texts:
        raise ApiError(422, f"{len(batch)} lists of ids, at most {serving.limits.texts} are allowed", param="ids")
    if wrong := [i for ids in batch for i in ids if not 0 <= i < tokenizer.vocab_size]:
        raise ApiError(422, f"Token id {wrong[0]} is out of vocabulary", param="ids", tei="Tokenizer")
    left_out = tokenizer.special_ids if body.skip_special_tokens else frozenset()
    return json_response([tokenizer.decode([i for i in ids if i not in left_out]) for ids in batch])


def _predictions(recipe: Recipe, values: np.ndarray) -> list[dict[str, Any]]:
    labels = _labels(recipe, len(values))
    return [{"label": labels[str(i)], "score": float(values[i])} for i in np.argsort(-values, kind="stable").tolist()]


def _labels(recipe: Recipe, count: int) -> dict[str, str]:
    """transformers' names for the classes that config.json does not name."""
    named: Mapping[str, str] = recipe.hf.get("id2label") or {}
    return {str(i): named.get(str(i), f"LABEL_{i}") for i in range(count)}


def _model_type(serving: Serving) -> dict[str, Any]:
    recipe = serving.recipe
    if recipe.embeds:
        return {"embedding": {"pooling": "+".join(recipe.pooling)}}
    labels = _labels(recipe, recipe.vector_size)
    kind = "reranker" if recipe.vector_size == 1 else "classifier"
    return {kind: {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # no exponential that overflows
