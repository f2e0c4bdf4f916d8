"""Jinja templates that make one prompt of a query and a document. They come with checkpoints, so they run sandboxed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def read_template(template: str) -> str:
    """A template as users give it: its text, or the name of a file that holds it.

    Raises:
        ValueError: the name of a file that is not there.
    """
    if "{" in template or "\n" in template:
        return template
    path = Path(template)
    if not path.is_file():
        raise ValueError(f"chat_template is {template!r}: neither a jinja template nor a file")
    return path.read_text(encoding="utf-8")


def render_pair(
    template: str,
    query: str,
    document: str,
    instruction: str | None = None,
    *,
    generation_prompt: bool = False,
    special_tokens: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The prompt of one query and one document.

    Args:
        template: over `messages` of the roles "query" and "document" (and "system" for the instruction), and
            `instruction`; with the filters and settings of transformers' chat templates.
        instruction: what the model shall judge by; None: the template's own.
        generation_prompt: the template's `add_generation_prompt`.
        special_tokens: texts that the template may use by name ("bos_token", …).

    Raises:
        ValueError: the template is broken, or leaves the query or the document out.
    """
    messages = [{"role": "system", "content": instruction}] if instruction else []
    messages += [{"role": "query", "content": query}, {"role": "document", "content": document}]
    values = {"messages": messages, "instruction": instruction, "add_generation_prompt": generation_prompt}
    return _render(template, {**special_tokens, **values})


def render_messages(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation_prompt: bool = False,
    continue_final: bool = False,
    values: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The prompt of a conversation.

    Args:
        template: as transformers' chat templates are.
        messages: {"role": …, "content": text}.
        generation_prompt: whether the answer's beginning is written.
        continue_final: whether the prompt ends within the last message.
        values: what else the template may use: special tokens, and what the user says.

    Raises:
        ValueError: the template is broken, or both of the last two are asked for.
    """
    if generation_prompt and continue_final:
        raise ValueError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    given = {"messages": [dict(message) for message in messages], "add_generation_prompt": generation_prompt}
    text = _render(template, {**values, **given})
    if not continue_final:
        return text
    final = str(messages[-1]["content"]).strip()
    if final not in text:
        raise ValueError("continue_final_message: the last message does not reach the prompt as it is")
    return text[: text.rindex(final) + len(final)]


def check_syntax(template: str) -> str:
    """The template itself, if jinja reads it.

    Raises:
        ValueError: it does not.
    """
    from jinja2 import TemplateError

    try:
        _compile(template)
    except TemplateError as error:
        raise ValueError(f"chat_template: {error}") from error
    return template


def check_template(template: str) -> str:
    """The template itself, if a query and a document both reach its prompt.

    Raises:
        ValueError: they do not: every document would score alike.
    """
    query, document = "jaxpool-query", "jaxpool-document"
    prompt = render_pair(template, query, document)
    if missing := [word for word in (query, document) if word not in prompt]:
        raise ValueError(
            f"chat_template: {missing} do not reach the prompt; the template has to render messages of the roles "
            "'query' and 'document'"
        )
    return template


def _render(template: str, values: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    try:
        return _compile(template).render(**values)
    except TemplateError as error:
        raise ValueError(f"chat_template: {error}") from error


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    # transformers' settings, which chat templates are written for. A last newline is dropped.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)
