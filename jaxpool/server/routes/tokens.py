"""Texts as token ids and back: `/tokenize`, `/detokenize`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from jaxpool.prompts import Shown, parse_text
from jaxpool.server.context import find_model, in_reader, prompts, tokenization
from jaxpool.server.encoding import json_response
from jaxpool.server.errors import ApiError
from jaxpool.server.protocol import DetokenizeBody, TextBody, TokenizeBody
from jaxpool.tokens import Tokenizer

router = APIRouter()


@router.post("/tokenize")
@in_reader
def tokenize(request: Request, body: TokenizeBody) -> Response:
    """vLLM's, and TEI's by its field `inputs`."""
    serving = find_model(request, body.model)
    tokenizer = serving.llm.engine.tokenizer
    if body.inputs is not None:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        serving.limits.check_texts(len(texts))
        prompt = "" if body.prompt_name is None else serving.calls.prompt(body.prompt_name, None)
        special = body.add_special_tokens is not False
        return json_response([_with_places(tokenizer, prompt + text, special) for text in texts])
    text_body = TextBody(
        input=body.prompt,
        messages=body.messages,
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template=body.chat_template,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    prompt = prompts(request, serving, text_body)
    if isinstance(prompt, Shown):
        raise ApiError(400, f"{prompt.names[0]}: texts alone are tokenised here, and no pictures", param="messages")
    text = parse_text(prompt, "prompt")
    special = tokenization(request, serving, text_body).get("add_special_tokens", True)
    (encoded,) = tokenizer.encode([text], 2**31 - 1, special_tokens=special)
    ids = encoded.ids.tolist()
    found = {"count": len(ids), "max_model_len": serving.recipe.max_length, "tokens": ids}
    return json_response(found | {"token_strs": tokenizer.tokens(ids) if body.return_token_strs else None})


@router.post("/detokenize")
@in_reader
def detokenize(request: Request, body: DetokenizeBody) -> Response:
    """vLLM's."""
    serving = find_model(request, body.model)
    tokenizer = serving.llm.engine.tokenizer
    if wrong := [i for i in body.tokens if not 0 <= i < tokenizer.vocab_size]:
        raise ApiError(400, f"Token id {wrong[0]} is out of vocabulary", param="tokens")
    return json_response({"prompt": tokenizer.decode(body.tokens)})


def _with_places(tokenizer: Tokenizer, text: str, special_tokens: bool) -> list[dict[str, Any]]:
    """TEI's form: each token with the characters of the text that it stands for."""
    found: list[dict[str, Any]] = []
    for i, token, place in tokenizer.places(text, special_tokens=special_tokens):
        start, stop = place or (None, None)
        own = token if place is None else text[start:stop]
        found.append({"id": i, "text": own, "special": place is None, "start": start, "stop": stop})
    return found
