"""Texts as token ids and back: `/tokenize`, `/detokenize`. In threads: long texts take their time."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from jaxpool.prompts import parse_text
from jaxpool.server.context import find_model, prompts
from jaxpool.server.encoding import json_response
from jaxpool.server.errors import ApiError
from jaxpool.server.protocol import DetokenizeBody, TextBody, TokenizeBody

router = APIRouter()


@router.post("/tokenize")
def tokenize(request: Request, body: TokenizeBody) -> Response:
    """vLLM's."""
    serving = find_model(request, body.model)
    tokenizer = serving.llm.engine.tokenizer
    text_body = TextBody(input=body.prompt, messages=body.messages, add_generation_prompt=body.add_generation_prompt)
    text = parse_text(prompts(request, serving, text_body), "prompt")
    special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
    (encoded,) = tokenizer.encode([text], 2**31 - 1, special_tokens=special)
    ids = encoded.ids.tolist()
    found = {"count": len(ids), "max_model_len": serving.recipe.max_length, "tokens": ids}
    return json_response(found | {"token_strs": tokenizer.tokens(ids) if body.return_token_strs else None})


@router.post("/detokenize")
def detokenize(request: Request, body: DetokenizeBody) -> Response:
    """vLLM's."""
    serving = find_model(request, body.model)
    tokenizer = serving.llm.engine.tokenizer
    if wrong := [i for i in body.tokens if not 0 <= i < tokenizer.vocab_size]:
        raise ApiError(400, f"Token id {wrong[0]} is out of vocabulary", param="tokens")
    return json_response({"prompt": tokenizer.decode(body.tokens)})
