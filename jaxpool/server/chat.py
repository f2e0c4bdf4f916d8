"""Conversations as prompts, by the server's chat template, the tokenizer's, or, where that is trusted, the client's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpool.chat_templates import read_template, render_messages
from jaxpool.server.protocol import TextBody
from jaxpool.server.serving import Serving


@dataclass(frozen=True)
class Chat:
    """How a server reads conversations.

    Attributes:
        template: for all models, instead of their tokenizers' own; None: theirs.
        trust_requests: whether a request may bring its own.
    """

    template: str | None = None
    trust_requests: bool = False

    def render(self, serving: Serving, body: TextBody) -> str:
        """The prompt of a body's messages.

        Raises:
            ValueError: no template, one that is not trusted or is broken, or parts that are no text.
        """
        if body.chat_template is not None and not self.trust_requests:
            raise ValueError(
                "Chat template is passed with request, but --trust-request-chat-template is not set. "
                "Refused request with untrusted chat template."
            )
        tokenizer = serving.llm.engine.tokenizer
        own = None if self.template is None else read_template(self.template)
        template = body.chat_template or own or tokenizer.chat_template
        if template is None:
            raise ValueError("`messages`: this model has no chat template; start the server with --chat-template")
        messages = [_plain(message) for message in body.messages or ()]
        if not messages:
            raise ValueError("`messages` is empty")
        try:
            return render_messages(
                template,
                messages,
                generation_prompt=body.add_generation_prompt,
                continue_final=body.continue_final_message,
                values={**tokenizer.special_tokens, **(body.chat_template_kwargs or {})},
            )
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
            raise ValueError(f"chat_template: {error}") from error  # of what it does with these messages


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is one text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content}
    if not isinstance(content, Sequence):
        raise ValueError("`messages`: `content` has to be a text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"`messages`: parts of type {kind!r} are not supported by this model, only 'text'")
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}
