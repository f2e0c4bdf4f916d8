"""Pairs of texts or pictures: how they are given, which belongs to which, how a pair becomes a prompt or a cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxpool.chat_templates import check_template, read_template, render_pair
from jaxpool.image_chat_templates import with_placeholders
from jaxpool.prompts import Pair, Parsed, Shown, Written, is_picture, kind_of, parse_content, parse_text, show
from jaxpool.recipe import Recipe


class Ranked(NamedTuple):
    """A document's place in a ranking: its number among the documents given, and its score."""

    index: int  # type: ignore[assignment]  # hides the method of tuples
    score: float


class RankedDocument(NamedTuple):
    """As `Ranked`, with the document as it was given."""

    index: int  # type: ignore[assignment]  # hides the method of tuples
    score: float
    document: Any


Side = str | Shown
"""One side of a pair."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def parse_pairs(first: Any, second: Any, recipe: Recipe) -> tuple[list[Side], list[Side]]:
    """Both sides, one with one: 1 with 1, 1 with N, or N with N.

    Args:
        first, second: what `parse_side` takes, or a list of it.
        recipe: of the model.

    Raises:
        ValueError: nothing, or numbers that do not fit; the words are vLLM's.
    """
    sides_1, sides_2 = _sides(first, "data_1", recipe), _sides(second, "data_2", recipe)
    if not sides_1:
        raise ValueError("At least one text element must be given")
    if not sides_2:
        raise ValueError("At least one text_pair element must be given")
    if len(sides_1) == 1:
        sides_1 = sides_1 * len(sides_2)
    if len(sides_1) != len(sides_2):
        raise ValueError(f"Input lengths must be either 1:1, 1:N or N:N, got {len(sides_1)} and {len(sides_2)}")
    return sides_1, sides_2


def _sides(given: Any, name: str, recipe: Recipe) -> list[Side]:
    if isinstance(given, (str, Mapping, Shown)) or is_picture(given):
        return [parse_side(given, name, recipe)]
    if not isinstance(given, Sequence):
        raise ValueError(f"{name}: expected a text or a list of texts, got {type(given).__name__}")
    return [parse_side(item, f"{name}[{i}]", recipe) for i, item in enumerate(given)]


def parse_side(item: Any, name: str, recipe: Recipe, options: Mapping[str, Any] = _NOTHING) -> Side:
    """A text, {"prompt": text} or {"content": [part, …]}; of an embedding model that sees, also an image of PIL's.

    Parts are what `prompts.parse_content` takes; `options` are vLLM's `mm_processor_kwargs`.

    Raises:
        ValueError: something else, or pictures for a model that takes none; the words are vLLM's.
    """
    if isinstance(item, Shown):
        return item
    if is_picture(item):
        content: Any = [{"type": "image_pil", "image_pil": item}]
    elif not isinstance(item, Mapping):
        return parse_text(item, name)
    elif set(item) == {"prompt"}:
        return parse_text(item["prompt"], f"{name}['prompt']")
    else:
        content = item.get("content")
        if set(item) != {"content"} or not isinstance(content, Sequence) or isinstance(content, str):
            keys = sorted(map(str, item))
            raise ValueError(f"{name}: expected a text, {{'prompt': …}} or {{'content': […]}}, got keys {keys}")
        name = f"{name}.content"
    if not compares_pictures(recipe) and any(kind_of(part) != "text" for part in content):
        raise ValueError(f"{name}: MultiModalParam is not supported for {recipe.architecture}")
    parts = parse_content(content, name)
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)
    return show(_prompt(parts, name, recipe), {name: parts}, options, name)


def compares_pictures(recipe: Recipe) -> bool:
    """Whether the model's scores may be of pictures: those of vectors are; a cross-encoder reads texts."""
    return recipe.embeds and recipe.family.tower is not None


def _prompt(parts: Sequence[Any], name: str, recipe: Recipe) -> str:
    tower = recipe.family.tower
    if tower is None or not tower.answers:
        return with_placeholders(recipe.family.name, parts, first=1, between="", joint="")
    check_alone(parts, name)
    return ""


def check_alone(parts: Sequence[Any], name: str) -> None:
    """For models that answer a picture by itself. Raises ValueError unless it is one, and no text beside it."""
    pictures = sum(not isinstance(part, str) for part in parts)
    if pictures > 1 or (pictures and any(part for part in parts if isinstance(part, str))):
        raise ValueError(
            f"{name}: this model embeds a text or one picture, not both and not several; "
            f"got {pictures} picture(s) and {len(parts) - pictures} text(s)"
        )


class PairWriter:
    """Makes prompts of pairs, as the model reads them.

    Args:
        recipe: of a classifier.
        special_tokens: the tokenizer's, which a template may use.
        template: the user's, instead of the model's own.
        instruction: for the template; None: the checkpoint's default prompt, or the template's own.

    Raises:
        ValueError: an instruction for a model without a template, or a template that drops a text.
    """

    def __init__(
        self,
        recipe: Recipe,
        special_tokens: Mapping[str, str],
        template: str | None = None,
        instruction: str | None = None,
    ) -> None:
        own = None if template is None else read_template(template)
        self._template = own or recipe.template
        self._generation_prompt = recipe.generation_prompt
        self._special_tokens = special_tokens
        self._separated = recipe.separated
        if instruction is None and recipe.default_prompt:
            instruction = recipe.prompts[recipe.default_prompt] or None
        elif instruction is not None and self._template is None:
            raise ValueError("instruction: this model has no prompt template that an instruction could stand in")
        self._instruction = instruction
        if self._template is not None:
            check_template(self._template)

    def __call__(self, query: str, document: str) -> Parsed:
        """The prompt of one pair of texts."""
        if self._template is not None:
            write = lambda document: self._render(query, document)  # noqa: E731
            return Written(write(document), document, write)
        if self._instruction:
            query = self._instruction + query  # sentence-transformers' default prompt
        return Pair(query, document) if self._separated else query + document

    def _render(self, query: str, document: str) -> str:
        return render_pair(
            self._template or "",
            query,
            document,
            self._instruction,
            generation_prompt=self._generation_prompt,
            special_tokens=self._special_tokens,
        )


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of the rows of `a` with those of `b`, float32 [n]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return ((a * b).sum(-1) / np.maximum(norms, 1e-12)).astype(np.float32)


def rank(
    scores: Sequence[float], documents: Sequence[Any], top_n: int | None, return_documents: bool
) -> list[Ranked] | list[RankedDocument]:
    """Documents by falling score, equal ones in the order given.

    Raises:
        ValueError: `top_n` below 1.
    """
    if top_n is not None and (not isinstance(top_n, int) or top_n < 1):
        raise ValueError(f"top_n is {top_n!r}, expected at least 1, or None for all")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_n]
    if return_documents:
        return [RankedDocument(i, scores[i], documents[i]) for i in order]
    return [Ranked(i, scores[i]) for i in order]
