"""Conversations as prompts, by the server's chat template, the tokenizer's, or, where that is trusted, the client's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxpool.chat_templates import render_messages
from jaxpool.image_chat_templates import default_template, own_template, takes_parts, with_placeholders
from jaxpool.prompts import Part, Shown, kind_of, parse_content, show
from jaxpool.scoring import check_alone
from jaxpool.server.protocol import TextBody
from jaxpool.server.serving import Serving


class _Template(NamedTuple):
    """A template, and whether it leaves the special tokens to the tokenizer."""

    text: str
    bare: bool


@dataclass(frozen=True)
class Chat:
    """How a server reads conversations.

    Attributes:
        template: for all models, instead of their tokenizers' own: a text, or the name of one of
            `image_chat_templates`; None: theirs.
        trust_requests: whether a request may bring its own.
        content_format: "string": templates get contents as texts; "openai": as lists of parts; "auto": as lists where
            the model sees, and the template writes pictures.
        values: for templates, under a request's own `chat_template_kwargs`.
    """

    template: str | None = None
    trust_requests: bool = False
    content_format: str = "auto"
    values: Mapping[str, Any] = field(default_factory=dict)

    def render(self, serving: Serving, body: TextBody, names: Sequence[str] | None = None) -> str | Shown:
        """The prompt of a body's messages, whose pictures have been opened.

        Args:
            serving: the model.
            body: has the messages of one conversation.
            names: how errors call each message's content; None: by its place in the body.

        Raises:
            ValueError: no template, one that is not trusted or is broken, or parts that the model does not take.
        """
        template, (messages,) = self._template(serving, body), body.conversations
        tower = serving.recipe.family.tower
        called = names or [f"messages[{i}].content" for i in range(len(messages))]
        parts = {
            name: _parts(message.get("content"), name, sees=tower is not None)
            for name, message in zip(called, messages, strict=True)
        }
        if not parts:
            raise ValueError("`messages` is empty")
        where = names[-1] if names else "messages"
        flat = [part for own in parts.values() for part in own]
        shows = any(not isinstance(part, str) for part in flat)
        options = body.mm_processor_kwargs or {}
        if tower is not None and tower.answers:
            check_alone(flat, where)
            if shows:
                return show("", parts, options, where)
        if template is None:
            raise ValueError("`messages`: this model has no chat template; start the server with --chat-template")
        family = None if tower is None else serving.recipe.family.name
        as_parts = self._as_parts(template.text, sees=family is not None)
        written = _written(list(parts.values()), family, as_parts=as_parts)
        text = self._write(template.text, messages, written, serving, body)
        return show(text, parts, options, where) if shows else text

    def adds_special_tokens(self, serving: Serving, body: TextBody) -> bool:
        """Whether the tokenizer adds its special tokens: a checkpoint's template writes them itself.

        Raises:
            ValueError: as `render`, of the template.
        """
        if body.messages is None or body.add_special_tokens is not None:
            return body.add_special_tokens is not False
        template = self._template(serving, body)
        return template is None or template.bare

    def of_pairs(self, serving: Serving) -> str | None:
        """The server's template, for pairs that the model reads at once; None: the checkpoint's own, or none."""
        own = self.template
        return None if own is None or serving.recipe.embeds or own_template(own) is not None else own

    def _template(self, serving: Serving, body: TextBody) -> _Template | None:
        if body.chat_template is not None and not self.trust_requests:
            raise ValueError(
                "Chat template is passed with request, but --trust-request-chat-template is not set. "
                "Refused request with untrusted chat template."
            )
        if body.chat_template:
            return _Template(body.chat_template, bare=False)
        if self.template is not None:
            named = own_template(self.template)
            return _Template(named or self.template, bare=named is not None)
        if own := serving.llm.engine.tokenizer.chat_template:
            return _Template(own, bare=False)
        default = default_template(serving.recipe.family.name)
        return None if default is None else _Template(default, bare=True)

    def _as_parts(self, template: str, *, sees: bool) -> bool:
        if self.content_format == "auto":
            return sees and takes_parts(template)
        return self.content_format == "openai"

    def _write(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        contents: Sequence[Any],
        serving: Serving,
        body: TextBody,
    ) -> str:
        tokenizer = serving.llm.engine.tokenizer
        try:
            return render_messages(
                template,
                [{**message, "content": content} for message, content in zip(messages, contents, strict=True)],
                generation_prompt=body.add_generation_prompt,
                continue_final=body.continue_final_message,
                values={**tokenizer.special_tokens, **self.values, **(body.chat_template_kwargs or {})},
            )
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
            raise ValueError(f"chat_template: {error}") from error  # of what it does with these messages


def _parts(content: Any, name: str, *, sees: bool) -> list[Part]:
    if not sees and isinstance(content, Sequence) and not isinstance(content, str):
        for i, part in enumerate(content):
            if (kind := kind_of(part)) != "text":
                raise ValueError(f"{name}[{i}]: parts of type {kind!r} are not supported by this model, only 'text'")
    return parse_content(content, name)


def _written(contents: Sequence[Sequence[Part]], family: str | None, *, as_parts: bool) -> list[Any]:
    """Contents as a template takes them: texts, or lists of parts; of a family that sees, or None."""
    if as_parts:
        return [
            [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
            for parts in contents
        ]
    written, number = [], 1
    for parts in contents:
        written.append(with_placeholders(family or "", parts, first=number, between="\n", joint="\n"))
        number += sum(not isinstance(part, str) for part in parts)
    return written
